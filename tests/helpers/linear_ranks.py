"""Ranks of a gloo group with vLLM's own linear classes: `python tests/helpers/linear_ranks.py FOLDER RANKS CASE`.

The process imports vLLM once and forks the ranks. Each builds the model with whole weights, computes what it should,
then shares it and computes again; what it found it writes as JSON to FOLDER/<rank>.json.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import AbstractContextManager, nullcontext
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import nn
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.distributed.parallel_state import (
    ensure_model_parallel_initialized,
    get_tp_group,
    init_distributed_environment,
)
from vllm.model_executor.layers.linear import ColumnParallelLinear, ReplicatedLinear
from vllm.model_executor.models.deepseek_v2 import DeepSeekV2FusedQkvAProjLinear

from engine_patch.sharded_linear import layers
from engine_patch.sharded_linear.carriers import Broadcasting
from engine_patch.sharded_linear.group import Group, OutOfStep
from engine_patch.sharded_linear.rolling import total
from engine_patch.sharded_linear.series import plan
from tests.helpers import memory

WIDTH, DEPTH, START = 96, 7, 31
PASSES, DEADLINE_S = 3, 60.0
CYCLES = 80
"""Of filling and emptying the windows, in the case `long`; in half of them torch's recorder of the last 2,000
collectives (TORCH_FR_BUFFER_SIZE) is full."""


class Plain:
    """Buffers wherever torch puts them."""

    bytes = 0

    def allocating(self, size: int) -> AbstractContextManager[None]:
        return nullcontext()

    def map(self) -> None:
        pass

    def drop(self) -> None:
        pass


class Across:
    """A quantisation method that rearranges (int8 in columns, a scale for each row), as NZ-like layouts do."""

    def __init__(self) -> None:
        self.processed = 0

    def create_weights(self, layer: Any, inputs: int, outputs: list[int], *rest: Any, **more: Any) -> None:
        layer.register_parameter("weight", nn.Parameter(torch.empty(sum(outputs), inputs), requires_grad=False))

    def process_weights_after_loading(self, layer: Any) -> None:
        self.processed += 1
        scale = layer.weight.abs().amax(1) / 127
        kept = (layer.weight / scale[:, None]).round().to(torch.int8)
        layer.weight = nn.Parameter(kept.t().contiguous().t(), requires_grad=False)
        layer.scale = scale

    def apply(self, layer: Any, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        return nn.functional.linear(x, layer.weight.float() * layer.scale[:, None], bias)


class Block(nn.Module):
    def __init__(self, prefix: str) -> None:
        super().__init__()
        self.fused_qkv_a_proj = DeepSeekV2FusedQkvAProjLinear(WIDTH, [64, 32], prefix=f"{prefix}.fused_qkv_a_proj")
        self.o_proj = ReplicatedLinear(WIDTH, WIDTH, bias=True, prefix=f"{prefix}.o_proj")
        self.packed = ReplicatedLinear(WIDTH, WIDTH, bias=False, prefix=f"{prefix}.packed")
        self.packed.quant_method = Across()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in (self.fused_qkv_a_proj, self.o_proj, self.packed):
            x = torch.tanh(layer(x)[0])
        return x


class Stage(nn.Module):
    """A pipeline stage that begins at layer 31."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({str(START + n): Block(f"layers.{START + n}") for n in range(DEPTH)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.layers.values():
            x = block(x)
        return x


def built() -> Stage:
    torch.manual_seed(7)
    model = Stage()
    for parameter in model.parameters():
        parameter.data.normal_(std=0.2)
    return model


def refusals() -> dict[str, str]:
    """Of layers that cannot be shared, and one that can."""
    model = nn.Module()
    model.free, model.tied, model.tied_too = (ReplicatedLinear(8, 8, bias=False) for _ in range(3))
    model.spread = ColumnParallelLinear(8, 8, bias=False)
    model.tied_too.weight = model.tied.weight
    model.again = model.free
    found, _ = layers.candidates(model)
    return {one.name: one.why_not for one in found}


def methods(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if hasattr(module, "quant_method")]


def main(rank: int, ranks: int, folder: Path, case: str) -> dict[str, Any]:
    torch.set_num_threads(1)
    with set_current_vllm_config(VllmConfig()), torch.inference_mode():
        init_distributed_environment(ranks, rank, f"file://{folder}/meet", rank, "gloo")
        ensure_model_parallel_initialized(ranks, 1)
        x = torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(3))
        whole = built()
        for module in methods(whole):
            layers.plain_kernel(module)
            module.quant_method.process_weights_after_loading(module)
        expected = whole(x)

        group = Group(get_tp_group().ranks, rank, 2.0 if case == "apart" else DEADLINE_S)
        model = built()
        found, modules = layers.candidates(model)
        planned = plan(found, ["fused_qkv_a_proj", "o_proj", "packed"], ranks, 1)
        carrier = Broadcasting(group, group.timeout_s, Plain())
        carrier.prepare(planned, modules)
        for one in planned:
            for name in one.layers:
                with carrier.placing(one, name, modules[name]):
                    modules[name].quant_method.process_weights_after_loading(modules[name])
        carrier.loaded()
        if case == "long":
            return lasting(model, carrier, x, expected)
        return divergent(model, carrier, x, rank) if case == "apart" else same(model, carrier, planned, x, expected)


def lasting(model: Stage, carrier: Broadcasting, x: torch.Tensor, expected: torch.Tensor) -> dict[str, Any]:
    """What this process keeps after half of many passes, and after the last."""
    kept = []
    for cycle in range(CYCLES):
        assert carrier.meet(True)
        carrier.ready()
        for _ in range(PASSES):
            assert torch.equal(model(x), expected)
        carrier.part()
        if cycle in (CYCLES // 2, CYCLES - 1):
            kept.append(
                {
                    "heap": memory.heap(),
                    "bytes": total(list(carrier._rolling.values())),
                    "files": len(list(Path("/proc/self/fd").iterdir())),
                }
            )
    carrier._group.exchange(b"", "end")  # a rank that is gone closes its ends of the sockets, and gloo then ours
    return {"kept": kept, "series": sum(len(one.layers) * roll.layer_bytes for one, roll in carrier._rolling.items())}


def same(model: Stage, carrier: Broadcasting, planned: Any, x: torch.Tensor, expected: torch.Tensor) -> dict[str, Any]:
    equal = []
    for _ in range(PASSES):
        assert carrier.meet(True)
        carrier.ready()
        equal += [torch.equal(model(x), expected) for _ in range(PASSES)]
        carrier.part()
    processed = [
        module.quant_method.processed for module in methods(model) if hasattr(module.quant_method, "processed")
    ]
    rolling = carrier._rolling.values()
    return {
        "equal": equal,
        "processed": processed,
        "bytes": [one.bytes for one in rolling],
        "predicted": [one.series.window.resident(carrier._group.me) * one.layer_bytes for one in rolling],
        "biases": [block.o_proj.bias.numel() for block in model.layers.values()],
        "refusals": refusals(),
        "together": carrier.meet(carrier._group.me != 0),
    }


def divergent(model: Stage, carrier: Broadcasting, x: torch.Tensor, rank: int) -> dict[str, Any]:
    """Rank 1 leaves the others alone after the first pass."""
    carrier.ready()
    model(x)
    if rank == 1:
        return {"error": ""}
    try:
        for _ in range(PASSES):
            model(x)
    except OutOfStep as error:
        return {"error": str(error)}
    return {"error": "none"}


def write(rank: int, ranks: int, folder: Path, case: str) -> None:
    (folder / f"{rank}.json").write_text(json.dumps(main(rank, ranks, folder, case)))


def fork(ranks: int, folder: Path, case: str) -> int:
    os.environ["VLLM_DIST_IDENT"] = ident = f"vnpu-test-{os.getpid()}"
    processes = get_context("fork").Process
    children = [processes(target=write, args=(rank, ranks, folder, case)) for rank in range(ranks)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    for left in Path("/dev/shm").glob(f"{ident}-*"):  # where vLLM's ranks met
        left.unlink()
    return max(abs(child.exitcode or 0) for child in children)


if __name__ == "__main__":
    sys.exit(fork(int(sys.argv[2]), Path(sys.argv[1]), sys.argv[3]))
