"""Watches the node's keys while it runs and judges afterwards: which switches happened, and did the invariants hold."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from itertools import pairwise

import msgspec

from coordinator.core.events import DeviceSeen, Fact, ResidencySeen, SeatSeen, SpecSeen
from coordinator.core.model import Device, Holder, Phase, Residency, Seat, Spec
from coordinator.store import keys
from coordinator.store.base import Listing, Store
from coordinator.store.facts import Reader
from coordinator.store.follow import follow


class Seen(msgspec.Struct, frozen=True):
    """A residency as it was published, with the monotonic time at which it was seen here."""

    at: float
    residency: Residency


class Ordered(msgspec.Struct, frozen=True):
    """A seat as it was granted, with the monotonic time at which it was seen here."""

    at: float
    seat: Seat


class Audit:
    """A live copy of the node's devices, specs, seats and residencies, with their history since it was opened."""

    def __init__(self) -> None:
        self.specs: dict[str, Spec] = {}
        self.history: dict[str, list[Seen]] = {}
        self.devices: dict[str, list[Device]] = {}
        self.orders: list[Ordered] = []
        self._changed = asyncio.Event()

    async def follow(self, store: Store) -> None:
        """Runs until cancelled."""
        reader = Reader()
        async for update in follow(store, keys.ROOT):
            event = reader.listed(update) if isinstance(update, Listing) else reader.changed(update)
            for fact in event.facts:
                self._take(fact)
            self._changed.set()
            self._changed = asyncio.Event()

    def _take(self, fact: Fact) -> None:
        match fact:
            case SpecSeen(engine=engine, spec=spec):
                if spec is None:
                    self.specs.pop(engine, None)
                else:
                    self.specs[engine] = spec
            case ResidencySeen(engine=engine, residency=residency) if residency is not None:
                self.history.setdefault(engine, []).append(Seen(time.monotonic(), residency))
            case SeatSeen(seat=seat) if seat is not None:
                self.orders.append(Ordered(time.monotonic(), seat))
            case DeviceSeen(device=device, state=state) if state is not None:
                self.devices.setdefault(device, []).append(state)
            case _:
                pass

    async def until(self, holds: Callable[[], bool], limit_s: float, what: str = "") -> None:
        """Wait until `holds()`; it is asked again after every change. Raises `TimeoutError` that says `what` is not."""
        try:
            async with asyncio.timeout(limit_s):
                while not holds():
                    await self._changed.wait()
        except TimeoutError:
            raise TimeoutError(f"after {limit_s:g} s not yet: {what}") from None

    def phase(self, engine: str) -> Phase | None:
        seen = self.history.get(engine)
        return seen[-1].residency.phase if seen and engine in self.specs else None

    def residency(self, engine: str) -> Residency:
        return self.history[engine][-1].residency

    def owners(self, device: str) -> set[Holder]:
        return {owner.holder for owner in self.devices[device][-1].owners if owner.bytes.total}

    def one_holder(self) -> bool:
        """I1: the fences of closed operations never go back, and what is open is never below what is closed."""
        return all(
            all(before.closed <= after.closed for before, after in pairwise(states))
            and all(state.open is None or state.open.revision > state.closed for state in states)
            for states in self.devices.values()
        )

    def within_capacity(self) -> bool:
        """I4: charged bytes never exceeded capacity, in any published state."""
        return all(state.charged <= state.capacity for states in self.devices.values() for state in states)
