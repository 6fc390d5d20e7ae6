"""The table of a model's weights: what stands in it, and which models are refused for what cannot be found."""

from __future__ import annotations

import ctypes
import mmap
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from engine_patch.tensors import SMALLEST, Unstreamable, table
from native._native import Arena

SIZE = 1 << 20


class Device:
    """An arena over real memory, and tensors in its blocks."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, SIZE)
        base = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        self.arena = Arena(base, SIZE, 4096, SIZE)

    def tensor(self, *shape: int) -> torch.Tensor:
        size = 4 * torch.Size(shape).numel()
        address = self.arena.allocate(size)
        return torch.frombuffer((ctypes.c_char * size).from_address(address), dtype=torch.float32).view(shape)


@pytest.fixture
def device() -> Device:
    return Device()


def linear(rows: int, columns: int, **attributes: Any) -> torch.nn.Module:
    """A layer as vLLM's CPU dispatch leaves it: the weight packed behind a function."""
    module = torch.nn.Module()
    module.weight = torch.nn.Parameter(torch.zeros(rows, columns))
    module.output_size_per_partition, module.input_size_per_partition = rows, columns  # type: ignore[assignment]
    for name, value in {"cpu_linear": lambda x, weight, bias: x, **attributes}.items():
        setattr(module, name, value)
    return module


def model(**children: Any) -> torch.nn.Module:
    whole = torch.nn.Module()
    for name, child in children.items():
        setattr(whole, name, child)
    return whole


# ---- what stands in it


def test_what_lies_in_the_arena_is_its_blocks(device: Device):
    """Also those that no tensor is known of: they are packed weights. Names and types come from who lies there."""
    weight = device.tensor(64, 32)
    hidden = device.arena.allocate(SMALLEST)
    found = table(model(weight=torch.nn.Parameter(weight)), device.arena)
    assert found.addresses == (weight.data_ptr(), hidden)
    first, second = found.extents
    assert (first.name, first.length, first.offset) == ("weight", 64 * 32 * 4, 0)
    assert (first.dtype, first.shape, first.stride) == ("torch.float32", (64, 32), (32, 1))
    offset = hidden - device.arena.base
    assert (second.name, second.length, second.offset) == (f"packed@{offset:#x}", SMALLEST, offset)
    assert (second.dtype, second.shape) == ("", ())


def test_what_lies_elsewhere_is_found_in_the_modules(device: Device):
    """Parameters, buffers that are saved or not, and tensors that were left as plain attributes."""
    norm = torch.nn.Module()
    norm.weight = torch.nn.Parameter(torch.ones(5))
    norm.register_buffer("kept", torch.ones(3, dtype=torch.float64))
    norm.register_buffer("rotary", torch.ones(7), persistent=False)
    norm.scale = torch.ones(2, dtype=torch.int8)
    found = table(model(norm=norm, own=torch.ones(1)), device.arena)
    lies = {extent.name: address for extent, address in zip(found.extents, found.addresses, strict=True)}
    assert lies == {
        "norm.kept": norm.kept.data_ptr(),
        "norm.rotary": norm.rotary.data_ptr(),
        "norm.scale": norm.scale.data_ptr(),
        "norm.weight": norm.weight.data_ptr(),
        "own": found.addresses[-1],
    }
    assert [extent.length for extent in found.extents] == [24, 28, 2, 20, 4]
    assert all(extent.offset == -1 for extent in found.extents)


def test_a_storage_that_several_share_stands_there_once(device: Device):
    """Whole, under the first name, however little of it a view shows."""
    embedding, head = torch.nn.Module(), torch.nn.Module()
    embedding.weight = torch.nn.Parameter(torch.zeros(8, 4))
    head.weight = embedding.weight
    head.view = embedding.weight.data[2:3]
    inside = device.tensor(16)
    found = table(model(embedding=embedding, head=head, one=inside, two=inside.view(4, 4)), device.arena)
    assert [(extent.name, extent.length) for extent in found.extents] == [("one", 4096), ("embedding.weight", 128)]
    assert found.addresses == (inside.data_ptr(), embedding.weight.data_ptr())


def test_what_has_no_bytes_here_does_not_stand_there(device: Device):
    away = torch.zeros(4, device="meta")
    sparse = torch.zeros(2, 2).to_sparse()
    assert table(model(none=torch.zeros(0), away=away, sparse=sparse, number=3), device.arena) == ((), ())


def test_the_order_is_the_same_however_modules_were_made(device: Device):
    one, two = torch.ones(1), torch.ones(2)
    names = [
        [extent.name for extent in table(model(**children), device.arena).extents]
        for children in ({"a": one, "b": two}, {"b": two, "a": one})
    ]
    assert names == [["a", "b"]] * 2


# ---- what is refused


def test_a_model_that_did_not_fit_into_device_pages_is_refused():
    """Some of its bytes lie where nothing looks for them."""
    spilled: Any = SimpleNamespace(spilled_bytes=4097, base=0, blocks=list)
    with pytest.raises(Unstreamable, match="4097 bytes did not fit into device pages"):
        table(model(weight=torch.ones(1)), spilled)


@pytest.mark.parametrize("kind", ["linear", "embedding"])
def test_a_weight_that_is_packed_outside_device_pages_is_refused(device: Device, kind: str):
    """The hook takes blocks of 64 KiB and more: one number below that lies nobody knows where."""

    def layer(rows: int) -> torch.nn.Module:
        made = linear(rows, 1)
        if kind == "embedding":
            del made.output_size_per_partition, made.input_size_per_partition
            made.num_embeddings_per_partition, made.embedding_dim = rows, 1  # type: ignore[assignment]
        return made

    limit = SMALLEST // 4
    with pytest.raises(Unstreamable, match=rf"^layers\.q is packed into {SMALLEST - 4} bytes, which are not in"):
        table(model(layers=model(p=layer(limit), q=layer(limit - 1))), device.arena)
    assert table(model(layers=model(p=layer(limit))), device.arena).extents


def test_a_layer_that_is_not_packed_may_be_small(device: Device):
    plain = linear(2, 2, cpu_linear=torch.nn.functional.linear)
    assert [extent.name for extent in table(model(plain=plain), device.arena).extents] == ["plain.weight"]


def test_a_quantised_layer_is_refused(device: Device):
    class GPTQMarlinLinearMethod: ...

    class UnquantizedLinearMethod: ...

    for method in (None, UnquantizedLinearMethod()):
        assert table(model(a=linear(256, 256, quant_method=method)), device.arena).extents
    with pytest.raises(Unstreamable, match=r"^a: the layout of GPTQMarlinLinearMethod is not verified"):
        table(model(a=linear(256, 256, quant_method=GPTQMarlinLinearMethod())), device.arena)
