"""The check of torch on a device, with a torch that computes on the host driver's pages."""

from __future__ import annotations

import ctypes
import json
from types import SimpleNamespace
from typing import Any

import pytest

from engine_patch import torch_check
from native._native import open_driver
from tests.helpers.torch_memory import Torch

DEVICE = 8


class Numbers:
    """A tensor: its first value is 1, the rest 0."""

    def __init__(self, address: int) -> None:
        self._first = ctypes.c_int64.from_address(address)
        self._first.value = 1

    def data_ptr(self) -> int:
        return ctypes.addressof(self._first)

    def double(self) -> Numbers:
        return self

    def sum(self) -> Numbers:
        return self

    def item(self) -> float:
        return float(self._first.value)


@pytest.fixture
def torch(monkeypatch: pytest.MonkeyPatch) -> Any:
    memory = Torch(DEVICE)
    monkeypatch.setitem(torch_check.ALLOCATORS, "host", "Allocator")
    monkeypatch.setattr(torch_check, "CHUNK", 2 << 20)
    monkeypatch.setattr(torch_check, "_numbers", lambda name, device: Numbers(memory.tensor(4096)))
    return SimpleNamespace(memory=memory, synchronize=memory.synchronize, set_device=lambda device: None)


def test_a_tensor_in_our_pages_outlives_them(torch: Any) -> None:
    found = torch_check.check(torch, open_driver("host"), "host", DEVICE)
    assert found.failure == ""
    assert ("sum before and after", "1, 1") in found.rows


def test_a_tensor_elsewhere_is_found_out(torch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = ctypes.create_string_buffer(64)
    monkeypatch.setattr(torch_check, "_numbers", lambda name, device: Numbers(ctypes.addressof(elsewhere)))
    assert "does not lie in our pages" in torch_check.check(torch, open_driver("host"), "host", DEVICE).failure


def test_a_copy_that_brings_nothing_back_is_found_out(torch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    job = SimpleNamespace(wait=lambda *_: True)
    monkeypatch.setattr(torch_check.DeviceBus, "start", lambda *_, **__: job)
    assert "other values" in torch_check.check(torch, open_driver("host"), "host", DEVICE).failure


def test_without_a_device_it_says_so(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_check, "_torch", lambda name: None)
    assert torch_check.main(["cuda", "0", ""]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["failure"], told["rows"][0][0]) == ("", "torch")
