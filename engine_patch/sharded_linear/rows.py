"""A mapped layer is multiplied by rows: each rank takes its part of them, then the ranks gather what came out.

If every rank multiplied by all rows, all would read the same bytes at the same moment. Where their cores share a last
level of cache, that is the fastest way there is; where they do not, every line comes out of another core's cache, which
is slower than memory. By rows no byte is read twice, and nothing is computed twice either.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from vllm.model_executor.layers.linear import UnquantizedLinearMethod
from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm

SMALLEST = 256 << 10
"""Bytes of a part. To read fewer takes less time than to gather."""
BLOCK = 64
"""A part has whole blocks of so many rows, because kernels pad what is left over; the last one has what there is."""

Gather = Callable[[torch.Tensor], torch.Tensor]
"""Takes this rank's part of the last dimension, returns all ranks', in their order. All ranks call it, with parts
of one size."""


def divides(layer: Any, ranks: int) -> bool:
    """Whether `split` can do this layer: an ordinary large weight without bias, of which each rank gets a part."""
    weight = layer._parameters.get("weight")
    return (
        type(layer.quant_method) is UnquantizedLinearMethod
        and weight is not None
        and weight.ndim == 2
        and (ranks - 1) * _rows(weight.shape[0], ranks) < weight.shape[0]
        and weight.nbytes >= ranks * SMALLEST
        and layer._parameters.get("bias") is None
    )


def split(layer: Any, ranks: int, me: int, gather: Gather) -> None:
    """Pack a plain weight in a part for each rank, as vLLM packs a layer; from now on multiply by part `me`.

    The other parts stay where they are as well: the arenas of all ranks must be filled alike.
    """
    height = layer.weight.shape[0]
    size = _rows(height, ranks)
    parts = [_packed(rows) for rows in layer.weight.data.split(size)]
    mine = parts[me]
    lacks, surplus = size - min(size, height - me * size), ranks * size > height

    def multiply(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        part = mine.cpu_linear(x, mine.weight, None)
        whole = gather(nn.functional.pad(part, (0, lacks)) if lacks else part)
        return whole[..., :height].contiguous() if surplus else whole

    layer.cpu_linear = multiply
    layer.parts = parts
    layer.weight = nn.Parameter(layer.weight.new_empty(0), requires_grad=False)


def _rows(height: int, ranks: int) -> int:
    """Of a part, but for the last."""
    return -(-height // (ranks * BLOCK)) * BLOCK


def _packed(rows: torch.Tensor) -> Any:
    part: Any = nn.Module()
    part.weight = nn.Parameter(rows, requires_grad=False)
    dispatch_cpu_unquantized_gemm(part, remove_weight=True)
    if part.weight.numel():  # no kernel packed it: it must not stay where it was loaded
        part.weight.data = rows.clone()
    return part
