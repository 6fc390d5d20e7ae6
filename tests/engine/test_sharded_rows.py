"""Mapped layers that each rank multiplies by its part of the rows."""

from __future__ import annotations

import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch deprecates what vLLM imports
    from vllm.model_executor.layers.linear import UnquantizedLinearMethod

    from engine_patch.sharded_linear import carriers, rows
from engine_patch.sharded_linear.carriers import Mapped
from engine_patch.sharded_linear.series import Series
from engine_patch.sharded_linear.tensors import tensors_of
from engine_patch.sharded_linear.window import Window

pytestmark = pytest.mark.engine

RANKS, ROWS, WIDTH = 2, 1088, 128


def made(height: int = ROWS, *, bias: bool = False, width: int = WIDTH) -> Any:
    torch.manual_seed(5)
    layer: Any = nn.Linear(width, height, bias=bias).requires_grad_(False)
    layer.quant_method = UnquantizedLinearMethod()
    return layer


class Gathered:
    """What both ranks computed, where every rank does the same calls in the same order."""

    def __init__(self, ranks: int) -> None:
        self.parts: list[torch.Tensor] = []
        self._ranks = ranks

    def __call__(self, part: torch.Tensor) -> torch.Tensor:
        self.parts.append(part)
        return torch.cat(self.parts[-self._ranks :], -1)


@pytest.mark.parametrize("tokens", [1, 4, 40])
@pytest.mark.parametrize(("ranks", "height"), [(2, ROWS), (17, ROWS), (3, ROWS), (2, 1024), (2, ROWS - 5)])
def test_the_parts_of_all_ranks_are_what_the_layer_gives(
    ranks: int, height: int, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """17 blocks of 64 rows: 9 and 8; one each; 6, 6 and 5. Or as many for each; or a last block that is not whole."""
    monkeypatch.setattr(rows, "SMALLEST", 1)
    x = torch.randn(tokens, WIDTH)
    gather = Gathered(ranks)
    for me in range(ranks):
        layer = made(height)
        expected = nn.functional.linear(x, layer.weight)
        assert rows.divides(layer, ranks)
        rows.split(layer, ranks, me, gather)
        found = layer.cpu_linear(x, layer.weight, None)
        assert found.is_contiguous()
    assert len({part.shape for part in gather.parts}) == 1
    assert gather.parts[0].shape[1] == -(-height // 64 // ranks) * 64
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("packs", [True, False])
def test_nothing_stays_where_the_weight_was_loaded(packs: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not packs:
        monkeypatch.setattr("vllm._custom_ops._supports_onednn", False)
    layer = made()
    x, plain = torch.randn(3, WIDTH), layer.weight.data
    expected = nn.functional.linear(x, plain)
    rows.split(layer, RANKS, 0, lambda part: torch.cat([part, part], -1))
    assert not tensors_of(layer)
    plain.zero_()
    torch.testing.assert_close(layer.cpu_linear(x, layer.weight, None)[:, :576], expected[:, :576])


def other_method() -> Any:
    layer = made()
    layer.quant_method = SimpleNamespace()
    return layer


@pytest.mark.parametrize(
    "layer",
    [
        pytest.param(made(bias=True), id="a bias, which each rank has whole"),
        pytest.param(made(64, width=4096), id="nothing for one rank"),
        pytest.param(made(ROWS, width=WIDTH // 4), id="small"),
        pytest.param(other_method(), id="a quantisation of its own"),
    ],
)
def test_other_layers_are_multiplied_whole(layer: Any) -> None:
    assert rows.divides(made(), RANKS)
    assert not rows.divides(layer, RANKS)


@pytest.mark.parametrize("eager", [True, False])
def test_a_mapped_layer_is_split_in_eager_mode_alone(eager: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a compiled graph it stays as it is. A rank takes the part of its number."""
    monkeypatch.setattr(
        carriers, "get_tp_group", lambda: SimpleNamespace(all_gather=lambda part: torch.cat([part, part], -1))
    )
    group: Any = SimpleNamespace(size=RANKS, me=1)
    pages: Any = SimpleNamespace(placing=lambda *of: _Anywhere())
    modules = {"layers.0.a": made(), "layers.1.a": made(bias=True)}
    series = Series("layers.*.a", tuple(modules), Window(length=2, group=RANKS, prefetch=1, first=0))
    mapped = Mapped(pages, group if eager else None)
    mapped.prepare((series,), modules)
    assert [hasattr(each, "_cpu_skip_gemm_dispatch") for each in modules.values()] == [eager, False]
    x = torch.randn(2, WIDTH)
    expected = [nn.functional.linear(x, each.weight, each.bias) for each in modules.values()]
    for name, each in modules.items():
        with mapped.placing(series, name, each):
            each.cpu_linear = nn.functional.linear
    found = [each.cpu_linear(x, each.weight, each.bias) for each in modules.values()]
    if eager:
        expected[0] = torch.cat([expected[0][:, 576:], torch.zeros(2, 64), expected[0][:, 576:]], -1)[:, :ROWS]
    torch.testing.assert_close(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1])


class _Anywhere:
    """An arena that is wherever torch allocates."""

    base, reserved = 0, 1 << 63

    def __enter__(self) -> _Anywhere:
        return self

    def __exit__(self, *of: object) -> None: ...
