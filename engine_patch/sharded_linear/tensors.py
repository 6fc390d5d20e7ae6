"""The ordinary tensors of a module, and others in their places."""

from __future__ import annotations

import torch

BIAS = "bias"
"""Stays on every rank: small, and kernels take it beside the weight."""


def tensors_of(layer: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Its ordinary tensors with bytes in them: parameters, buffers and attributes that `process_weights_after_loading`
    left; without the bias."""
    all_of_them = {**vars(layer), **layer._buffers, **layer._parameters}
    return {
        name: each.data
        for name, each in all_of_them.items()
        if isinstance(each, torch.Tensor) and each.layout == torch.strided and each.numel() and name != BIAS
    }


def put(layer: torch.nn.Module, name: str, tensor: torch.Tensor) -> None:
    """`tensor` takes the place of the layer's tensor of that name."""
    parameter = layer._parameters.get(name)
    if parameter is not None:
        parameter.data = tensor
    elif name in layer._buffers:
        layer._buffers[name] = tensor
    else:
        setattr(layer, name, tensor)
