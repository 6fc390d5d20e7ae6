"""`python -m engine_patch.torch_check DRIVER DEVICE LIBRARY`: whether torch's tensors on this machine's device lie in
pages of ours, and outlive them. Part of `make verify-device`, which runs it as a process of its own; prints JSON.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import Any

import msgspec

from coordinator.core.model import Bytes
from engine_patch.device_bus import GIB, DeviceBus
from engine_patch.device_pools import TorchPools
from engine_patch.host_memory import Mapping
from native._native import Arena, Driver, DriverError, open_driver
from native.protocol import Kind

CHUNK = 64 << 20
ELEMENTS = 5_000_000
ALLOCATORS = {"cuda": "CUDAPluggableAllocator", "ascend": "NPUPluggableAllocator"}


class Found(msgspec.Struct):
    """As a section of the report: `failure` is empty where all went well."""

    rows: list[tuple[str, str]] = []
    failure: str = ""


def main(words: Sequence[str]) -> int:
    name, device, library = words
    torch = _torch(name)
    if torch is None:
        found = Found([("torch", "sees no such device here: not run")])
    else:
        try:
            found = check(torch, open_driver(name, int(device), library=library), name, int(device))
        except DriverError as error:
            found = Found(failure=str(error))
    sys.stdout.write(msgspec.json.encode(found).decode() + "\n")
    return 0


def _torch(name: str) -> Any:
    """`torch.cuda` or `torch.npu`, where it has a device."""
    try:
        if name == "ascend":
            importlib.import_module("torch_npu")
        module = getattr(importlib.import_module("torch"), "npu" if name == "ascend" else "cuda")
        return module if module.is_available() else None
    except ImportError:
        return None


def check(torch: Any, driver: Driver, name: str, device: int) -> Found:
    """A tensor is made, its bytes saved, its pages taken away and replaced by others, its bytes brought back."""
    torch.set_device(device)
    pools = TorchPools(torch.memory, ALLOCATORS[name], torch.synchronize, device)
    bus = DeviceBus(driver, pools, Bytes(weights=GIB))
    base = driver.reserve(GIB)
    old, new = driver.create(CHUNK), driver.create(CHUNK)
    arena = Arena(base, GIB, CHUNK, CHUNK)
    driver.map(base, old)
    with pools.allocating(Kind.WEIGHTS, arena):
        tensor = _numbers(name, device)
    pools.synchronize()
    inside = base <= tensor.data_ptr() < base + CHUNK
    before = tensor.double().sum().item()
    bus.quiesce()
    memory = Mapping(CHUNK)
    bus.lock(memory)
    bus.save([(memory.address, base, CHUNK)])
    driver.unmap(base)
    driver.map(base, new)
    there = bus.start([(base, memory.address, CHUNK)], beside=False).wait(None, 60)
    after = tensor.double().sum().item()
    live = pools.live(Kind.WEIGHTS, arena)
    rows = [
        ("torch", str(importlib.import_module("torch").__version__)),
        ("tensor", f"{ELEMENTS} numbers at {tensor.data_ptr():#x}"),
        ("in torch's snapshot", f"{len(live)} live blocks, {sum(size for _, size in live)} B"),
        ("sum before and after", f"{before:.0f}, {after:.0f}"),
    ]
    wrong = (
        (not inside, "the tensor does not lie in our pages: the pluggable allocator was not asked"),
        (not there, "the copy back did not end"),
        (not live, "torch's snapshot does not know the tensor"),
        (before != after, "the tensor has other values after its pages were replaced"),
    )
    return Found(rows, next((what for failed, what in wrong if failed), ""))


def _numbers(name: str, device: int) -> Any:
    kind = "npu" if name == "ascend" else "cuda"
    return importlib.import_module("torch").arange(ELEMENTS, device=f"{kind}:{device}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
