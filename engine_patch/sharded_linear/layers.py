"""vLLM's linear layers as sharing sees them (vllm/model_executor/layers/linear.py, 0.32.0)."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from vllm.model_executor.layers.linear import LinearBase, ReplicatedLinear

from engine_patch.sharded_linear.series import Candidate
from engine_patch.sharded_linear.tensors import tensors_of


def whole(layer: Any) -> bool:
    """Whether every rank of the tensor-parallel group holds all of it: `ReplicatedLinear` and what descends from it,
    and others with `disable_tp` (as `DeepSeekV2FusedQkvAProjLinear`)."""
    return isinstance(layer, ReplicatedLinear) or layer.tp_size == 1


def candidates(model: torch.nn.Module) -> tuple[list[Candidate], dict[str, Any]]:
    """All linear layers of this rank in the model's order, and the module of each name. Before
    `process_weights_after_loading`. Layers of other pipeline stages are not there; a module with several names (MLA
    has them) has its first."""
    found = [(name, each) for name, each in model.named_modules() if isinstance(each, LinearBase)]
    uses = Counter(id(tensor) for module in model.modules() for tensor in module._parameters.values())
    return [Candidate(name, form(each), _why_not(each, uses)) for name, each in found], dict(found)


def form(layer: Any) -> str:
    """Of all its tensors but the bias, and how they are processed."""
    tensors = sorted((name, str(t.dtype), tuple(t.shape)) for name, t in tensors_of(layer).items())
    return repr((type(layer.quant_method).__name__, tensors))


def plain_kernel(layer: Any) -> None:
    """Before its weights are processed: let vLLM's CPU path keep the weight as it is and multiply by
    `torch.nn.functional.linear`, where it would pack it behind a oneDNN handle. (vLLM does the same to MLA's
    `kv_b_proj`.) Costs half the speed at one request, 5 % at prefill, unless `rows` packs it."""
    layer._cpu_skip_gemm_dispatch = True


def _why_not(layer: Any, uses: Counter[int]) -> str:
    if not whole(layer):
        return "tensor parallelism has spread it already: no rank holds all of it"
    if any(uses[id(each)] > 1 for each in layer._parameters.values() if each is not None):
        return "it is tied: another part of the model uses the same weight"
    if not tensors_of(layer):
        return "its weight is no ordinary tensor"
    return ""
