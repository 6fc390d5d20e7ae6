"""Populating a device whose driver fails: a double stands in for the driver, the pool is real."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from native._native import DriverError
from native.daemon import device as device_module
from native.daemon.device import Device, DeviceFailed
from native.daemon.options import DeviceOption
from native.fences import Holder
from native.journal import DeviceLedger
from native.pool import Extent, Owner
from native.protocol import Kind

CHUNK = 2 << 20
OPTION = DeviceOption("0", "double", 4 * CHUNK)
OWNER = Owner(Holder("a", "1"), 1)


class Double:
    """A driver with `room` chunks."""

    name = backing = "double"
    huge = True
    sharing = "descriptor"

    def __init__(self, room: int) -> None:
        self.room = room
        self.created = 0

    def create(self, size: int) -> int:
        if not self.room:
            raise DriverError("no memory")
        self.room -= 1
        self.created += 1
        return self.created

    def export_handle(self, handle: int) -> int:
        return os.open(os.devnull, os.O_RDONLY)

    def free_bytes(self) -> int:
        return self.room * CHUNK


@asynccontextmanager
async def populating(
    monkeypatch: pytest.MonkeyPatch, driver: Double, held: int = 0
) -> AsyncIterator[tuple[Device, asyncio.Task[None], asyncio.Event]]:
    monkeypatch.setattr(device_module, "open_driver", lambda *args: driver)
    monkeypatch.setattr(device_module, "CREATE_PAUSE", 0.0)
    changed = asyncio.Event()
    device = Device(OPTION, DeviceLedger(), 2, changed.set)
    if held:
        device.adopt(OWNER, (Extent(Kind.WEIGHTS, 1, 5, held, CHUNK),))
    task = asyncio.create_task(device.populate())
    try:
        async with asyncio.timeout(60):
            yield device, task, changed
    finally:
        task.cancel()
        await asyncio.wait((task,))
        device.close()


async def test_a_fresh_device_that_cannot_be_filled_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    async with populating(monkeypatch, Double(3)) as (device, task, _):
        with pytest.raises(DeviceFailed, match=r"6 of 8 MiB could be populated.*lower its capacity"):
            await task
        assert not device.fences.agreed


async def test_after_a_restart_it_waits_until_memory_agrees_with_the_ledger(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """PROTOCOL rule 11: the pages of the dead may take a while to come back."""
    driver = Double(1)
    async with populating(monkeypatch, driver, held=2) as (device, _, changed):
        await asyncio.sleep(0.1)
        assert not device.fences.agreed
        assert device.pool.free == CHUNK
        driver.room = 1
        await changed.wait()
        assert device.fences.agreed
        assert (device.pool.free, device.pool.charged, device.drift()) == (2 * CHUNK, 2 * CHUNK, 0)


async def test_what_a_survivor_gives_back_is_created_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Double(4)
    async with populating(monkeypatch, driver, held=2) as (device, _, changed):
        await changed.wait()
        changed.clear()
        assert driver.created == 2
        device.give_back(OWNER, (5,))
        await changed.wait()
        assert driver.created == 3
        changed.clear()
        device.release(OWNER)
        await changed.wait()
        assert (driver.created, device.pool.free) == (4, 4 * CHUNK)


def test_drift_is_what_the_ledger_calls_free_and_the_driver_has_not(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Double(4)
    monkeypatch.setattr(device_module, "open_driver", lambda *args: driver)
    device = Device(OPTION, DeviceLedger(), 2, lambda: None)
    assert (device.measured_free(), device.drift()) == (4 * CHUNK, 0)
    driver.room = 1
    assert (device.measured_free(), device.drift()) == (CHUNK, 3 * CHUNK)
    driver.room = 100
    assert (device.measured_free(), device.drift()) == (4 * CHUNK, 0)
