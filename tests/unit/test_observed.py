"""Timed calls to etcd, and how far the watch is behind."""

from __future__ import annotations

import pytest

from coordinator.errors import LeaseLost, StoreUnavailable
from coordinator.observed import Lag, ObservedStore
from coordinator.store.base import Put
from coordinator.store.memory import MemoryEtcd


class Clock:
    def __init__(self) -> None:
        self.now = 10.0

    def __call__(self) -> float:
        return self.now


def test_a_write_is_timed_until_the_watch_shows_it() -> None:
    clock = Clock()
    lag = Lag(clock)
    assert lag.wrote(5) == []
    clock.now = 11.0
    assert lag.wrote(6) == []
    assert lag.reached(4) == []
    clock.now = 12.0
    assert lag.reached(6) == [2.0, 1.0]
    assert lag.reached(7) == []
    assert lag.wrote(7) == [0.0]  # the watch was first


async def test_every_call_is_told_with_what_came_of_it() -> None:
    told: list[tuple[str, str]] = []
    wrote: list[int] = []
    inner = MemoryEtcd().client(timeout=0.01)
    store = ObservedStore(inner, lambda call, outcome, s: told.append((call, outcome)), wrote.append, Clock())
    result = await store.txn([], [Put("/k", b"v")])
    await store.get("/k")
    await store.list("/")
    lease = await store.grant_lease(5)
    await store.keep_alive(lease)
    await store.revoke_lease(lease)
    with pytest.raises(LeaseLost):
        await store.keep_alive(lease)
    inner.partition()
    with pytest.raises(StoreUnavailable):
        await store.get("/k")
    assert wrote == [result.revision]
    assert told == [
        ("txn", "ok"), ("get", "ok"), ("list", "ok"), ("grant_lease", "ok"), ("keep_alive", "ok"),
        ("revoke_lease", "ok"), ("keep_alive", "lease_lost"), ("get", "unavailable"),
    ]  # fmt: skip
