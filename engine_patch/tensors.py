"""The weights of a loaded model as a table of extents: what a rank streams, laid out as its kernels use it.

On the host oneDNN hides packed weights in opaque handles, but they lie in the arena (`Hands.allocating`): there the
unit is the arena's block. What is too small for the arena (norms, scales) is found by walking the modules: parameters,
buffers, and tensors that `process_weights_after_loading` left as plain attributes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from native._native import Arena
from transfer.netloader.manifest import Extent

SMALLEST = 64 << 10
"""Bytes of a block that the allocation hook takes into the arena; see `native._native.activate`."""


class Table(NamedTuple):
    """Extents in a fixed order, and where each lies in this process."""

    extents: tuple[Extent, ...]
    addresses: tuple[int, ...]


class Unstreamable(Exception):
    """Some of the model's bytes cannot be found: it can be neither fetched nor served."""


def table(model: torch.nn.Module, arena: Arena) -> Table:
    """Everything that makes up the weights, each byte once.

    Raises:
        Unstreamable: and why.
    """
    if arena.spilled_bytes:
        raise Unstreamable(f"{arena.spilled_bytes} bytes did not fit into device pages")
    _refuse_hidden(model)
    named = dict(_storages(model))
    extents = []
    addresses = []
    for offset, length in arena.blocks():
        tensor = named.pop(arena.base + offset, None)
        name = tensor.name if tensor else f"packed@{offset:#x}"
        extents.append(_extent(name, length, offset, tensor))
        addresses.append(arena.base + offset)
    for address, tensor in sorted(named.items(), key=lambda item: item[1].name):
        extents.append(_extent(tensor.name, tensor.tensor.untyped_storage().nbytes(), -1, tensor))
        addresses.append(address)
    return Table(tuple(extents), tuple(addresses))


class _Named(NamedTuple):
    name: str
    tensor: torch.Tensor


def _storages(model: torch.nn.Module) -> Iterator[tuple[int, _Named]]:
    """Each storage once, by its address, under the first name that it is found by."""
    seen = set()
    for path, module in model.named_modules():
        for key, tensor in sorted(_tensors(module).items()):
            if tensor.device.type != "cpu" or not tensor.untyped_storage().nbytes():
                continue
            address = tensor.untyped_storage().data_ptr()
            if address not in seen:
                seen.add(address)
                yield address, _Named(f"{path}.{key}" if path else key, tensor)


def _tensors(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A module's own tensors, also those that are no parameters."""
    both = {**vars(module), **module._parameters, **module._buffers}
    return {
        key: value for key, value in both.items() if isinstance(value, torch.Tensor) and value.layout == torch.strided
    }


def _extent(name: str, length: int, offset: int, named: _Named | None) -> Extent:
    if named is None:
        return Extent(name[:512], length, offset)
    tensor = named.tensor
    return Extent(name[:512], length, offset, str(tensor.dtype), tuple(tensor.shape), tuple(tensor.stride()))


def _refuse_hidden(model: torch.nn.Module) -> None:
    """Packed weights under the hook's threshold lie nobody knows where."""
    for path, module in model.named_modules():
        method = getattr(module, "quant_method", None)
        if method is not None and not type(method).__name__.startswith("Unquantized"):
            raise Unstreamable(f"{path}: the layout of {type(method).__name__} is not verified on this platform")
        size = _packed_bytes(module)
        if 0 < size < SMALLEST:
            raise Unstreamable(f"{path} is packed into {size} bytes, which are not in device pages")


def _packed_bytes(module: Any) -> int:
    """Bytes of the packed copy that vLLM's CPU dispatch makes of a linear layer's weight; 0: there is none."""
    linear = getattr(module, "cpu_linear", None)
    if linear is None or linear is torch.nn.functional.linear:
        return 0
    rows = getattr(module, "output_size_per_partition", None) or getattr(module, "num_embeddings_per_partition", 0)
    columns = getattr(module, "input_size_per_partition", None) or getattr(module, "embedding_dim", 0)
    return int(rows or 0) * int(columns or 0) * int(module.weight.element_size())
