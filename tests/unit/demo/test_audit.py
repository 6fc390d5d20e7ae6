"""The audit judges what it saw: each invariant it speaks of can break."""

from __future__ import annotations

import asyncio

import pytest

from coordinator.core.model import Bytes, Device, DeviceId, Holder, Open, Order, Owner, Phase, Residency, Spec
from coordinator.demo.audit import Audit
from coordinator.store import keys
from coordinator.store.base import Put
from coordinator.store.codec import encode
from coordinator.store.memory import MemoryEtcd, MemoryStore

DEVICE = DeviceId("n/0")
A = Holder("a", "1")


def device(closed: int = 0, held: int = 0, opened: int | None = None) -> Device:
    return Device(
        driver="host", capacity=100, chunk=1, epoch="e", closed=closed,
        open=Open(A, opened, Order.RESTORE) if opened else None,
        owners=(Owner(A, Bytes(weights=held)),) if held else (),
    )  # fmt: skip


async def watched(*states: Device) -> Audit:
    """An audit that saw these states of the device, one after the other."""
    store, audit = MemoryStore(MemoryEtcd()), Audit()
    following = asyncio.create_task(audit.follow(store))
    try:
        for number, state in enumerate(states, 1):
            await store.txn((), (Put(keys.device(DEVICE), encode(state)),))
            await audit.until(lambda n=number: len(audit.devices.get(DEVICE, ())) >= n, 5.0)  # type: ignore[misc]
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        await store.close()
    return audit


@pytest.mark.parametrize(
    ("states", "holds"),
    [
        ([device(), device(opened=5), device(closed=5)], True),
        ([device(closed=5), device(closed=4)], False),
        ([device(closed=5, opened=5)], False),
    ],
)
async def test_one_holder(states: list[Device], holds: bool) -> None:
    assert (await watched(*states)).one_holder() is holds


@pytest.mark.parametrize(("held", "holds"), [(100, True), (101, False)])
async def test_capacity(held: int, holds: bool) -> None:
    assert (await watched(device(held=held))).within_capacity() is holds


async def test_a_phase_is_only_known_while_the_engine_is_registered() -> None:
    store, audit = MemoryStore(MemoryEtcd()), Audit()
    following = asyncio.create_task(audit.follow(store))
    spec = Spec(holder=A, model="a", url="http://127.0.0.1:1", devices=(DEVICE,), pid=1, boot_id="b", footprint=Bytes())
    residency = Residency(holder=A, phase=Phase.RESIDENT)
    await store.txn((), (Put(keys.spec("a"), encode(spec)), Put(keys.residency("a"), encode(residency))))
    await audit.until(lambda: audit.phase("a") is Phase.RESIDENT, 5.0)
    await store.txn((), (Put(keys.spec("a"), b"no spec"),))
    await audit.until(lambda: audit.phase("a") is None, 5.0)
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
    await store.close()
