"""Which module and which kernel waits for which bytes. Modules of torch, no engine."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from itertools import groupby
from typing import Any

import pytest
import torch

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch deprecates what vLLM imports
    from vllm.model_executor.model_loader import base_loader

from engine_patch.gating import Gates
from engine_patch.modules import Packed, owners, stages

pytestmark = pytest.mark.engine

BASE = 1 << 40
Run = Callable[..., torch.Tensor]


class Arena:
    """As much of the arena as is asked here."""

    base = BASE

    def __init__(self) -> None:
        self._blocks: list[tuple[int, int]] = []

    def blocks(self) -> list[tuple[int, int]]:
        return list(self._blocks)

    def take(self) -> tuple[int, int]:
        block = (len(self._blocks) * 100, 100)
        self._blocks.append(block)
        return block


class Packing:
    """Like vLLM's method for plain weights: what it packs is reached by the module's kernel alone."""

    def __init__(self, arena: Arena, ran: list[str]) -> None:
        self._arena = arena
        self._ran = ran
        self.took: dict[str, tuple[int, int]] = {}

    def process_weights_after_loading(self, module: Any) -> None:
        if isinstance(module, Product):
            self.took[module.name] = self._arena.take()
            module.cpu_linear = lambda x: (self._ran.append(module.name), x)[1]


class Product(torch.nn.Module):
    def __init__(self, name: str, method: Packing) -> None:
        super().__init__()
        self.name = name
        self.quant_method = method

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        done: torch.Tensor = self.cpu_linear(x)
        return done


class Layer(torch.nn.Module):
    def __init__(self, number: int, method: Packing) -> None:
        super().__init__()
        self.first, self.second = Product(f"{number}a", method), Product(f"{number}b", method)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x))  # type: ignore[no-any-return]


class Model(torch.nn.Module):
    def __init__(self, method: Packing) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList([Layer(0, method), Layer(1, method)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class Anywhere:
    """What is processed stays where it is."""

    def planned(self, model: torch.nn.Module) -> None:
        pass

    def processing(self, module: torch.nn.Module) -> AbstractContextManager[None]:
        return nullcontext()


class Loaded:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.told: list[str] = []
        self.arena = Arena()
        self.method = Packing(self.arena, self.told)
        self.model = Model(self.method)
        self.packed = Packed(self.arena)

        def process(model: torch.nn.Module) -> None:
            for module in model.modules():
                if isinstance(module, Product):
                    module.quant_method.process_weights_after_loading(module)

        monkeypatch.setattr(base_loader, "process_weights_after_loading", process)
        with self.packed.noting(Anywhere()):
            base_loader.process_weights_after_loading(self.model)
        self.stages = stages(self.model, self.packed)

    def gates(self) -> Gates:
        return Gates(self.stages, lambda stage: self.told.append(f"wait {stage}"))


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> Loaded:
    return Loaded(monkeypatch)


def test_each_packed_weight_has_a_stage_of_its_own_in_the_order_of_use(loaded: Loaded):
    found = owners(loaded.model, loaded.packed, BASE, loaded.arena.blocks(), loaded.stages)
    assert found.stage == {
        loaded.method.took[name]: stage for name, stage in {"0a": 2, "0b": 3, "1a": 5, "1b": 6}.items()
    }
    assert found.count == loaded.stages.count == 8


def test_a_kernel_runs_only_after_its_own_gate_and_not_after_those_of_others(loaded: Loaded):
    gates = loaded.gates()
    gates.install()
    gates.pass_first(settled=False)
    loaded.model(torch.ones(1))
    said = " ".join(word for word, _ in groupby(loaded.told)).replace("wait ", "")
    assert said == "0 1 2 0a 1 3 0b 4 5 1a 4 6 1b"


def test_a_settled_model_has_its_own_kernels_again_and_pays_nothing(loaded: Loaded):
    before = [module.cpu_linear for module in loaded.stages.kernels]
    gates = loaded.gates()
    for _ in range(2):
        gates.install()
        gates.install()
        gates.pass_first(settled=True)
    loaded.model(torch.ones(1))
    assert [module.cpu_linear for module in loaded.stages.kernels] == before
    assert loaded.told == ["0a", "0b", "1a", "1b"]


def test_a_kernel_that_was_replaced_meanwhile_is_not_gated_apart(monkeypatch: pytest.MonkeyPatch):
    loaded = Loaded(monkeypatch)
    first = loaded.model.layers[0].first
    first.cpu_linear = torch.nn.Identity()
    assert first not in stages(loaded.model, loaded.packed).kernels
