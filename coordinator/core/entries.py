"""Lines of the ledger: one for each engine and each device, with what was seen of it and since when.

Only `Ledger` writes them. Times are monotonic seconds of this process, bytes are bytes.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from coordinator.core.model import (
    Bytes,
    Device,
    DeviceId,
    EngineId,
    Holder,
    Load,
    ModelId,
    Order,
    Phase,
    Residency,
    Seat,
    Spec,
    Token,
)

FINAL = frozenset({Phase.RESIDENT, Phase.OFFLOADED, Phase.FAILED, Phase.STOPPED, Phase.LOST})
"""Phases in which an engine rests; the others say that an operation is under way."""


class EngineEntry(msgspec.Struct):
    """One engine. An entry lives as long as any key of it."""

    id: EngineId
    first_seen: float
    spec: Spec | None = None
    spec_revision: int = 0
    lease: int = 0
    residency: Residency | None = None
    residency_revision: int = 0
    residency_at: float = 0.0
    """When the residency was last seen to change."""
    load: Load = Load()
    resident_since: float = 0.0
    active_at: float = 0.0
    """When its load was last written (a short burst may leave it as it was); while it works, it is active now."""
    ordered: Order | None = None
    """What the newest seat seen of this process orders, whether it still stands or not; None: none is known."""
    ordered_revision: int = 0
    judged: int = 0
    """The ordered revision whose outcome has been counted."""
    failures: int = 0
    """Operations in a row that did not bring what was ordered."""
    retry_at: float = 0.0

    @property
    def model(self) -> ModelId | None:
        return ModelId(self.spec.model) if self.spec is not None else None

    @property
    def holder(self) -> Holder | None:
        return self.spec.holder if self.spec is not None else None

    @property
    def devices(self) -> tuple[DeviceId, ...]:
        return self.spec.devices if self.spec is not None else ()  # type: ignore[return-value]  # names of devices

    @property
    def phase(self) -> Phase | None:
        """Its own word for where it is; None while nothing, or only another start of it, has said anything."""
        if self.residency is None or self.residency.holder != self.holder:
            return None
        return self.residency.phase

    @property
    def working(self) -> bool:
        return self.load.running + self.load.waiting > 0


class DeviceEntry(msgspec.Struct):
    """One device: the daemon's key, the leader's seat and token, and what follows from them."""

    id: DeviceId
    state: Device | None = None
    closed_at: float = 0.0
    """When `closed` was last seen to advance, or the daemon's key to appear."""
    seat: Seat | None = None
    seat_revision: int = 0
    """mod_revision of the seat; of its deletion where it is gone."""
    seat_at: float = 0.0
    """Since when this leader waits for the seat to be closed by a daemon that is there (PROTOCOL rules 10, 12)."""
    token: Token | None = None
    token_revision: int = 0
    held: dict[Holder, Bytes] = {}
    """`owners` by holder (a holder's processes may be listed one by one)."""
    charged: int = 0
    lost_at: dict[Holder, float] = {}
    """Owners without spec, and since when."""
    engines: set[EngineId] = set()
    """Engines whose spec names this device."""
    overheads: dict[EngineId, int] = {}
    """What processes that live here take beside their pages, as far as the daemon does not charge it; no zeros."""
    overhead: int = 0
    """Sum of `overheads`."""

    @property
    def fence(self) -> int:
        """The revision that `closed` must have reached before anything is granted: 0 where there is no seat."""
        return self.seat_revision if self.seat is not None else 0

    def present(self, epoch: str | None) -> bool:
        """Whether its daemon's key stands and speaks of this epoch."""
        return self.state is not None and epoch is not None and self.state.epoch == epoch

    def closed(self, epoch: str | None) -> bool:
        """PROTOCOL rule 3; exactly then `owners` are valid (rule 4)."""
        return self.reached(self.fence, epoch)

    def reached(self, revision: int, epoch: str | None) -> bool:
        """Whether operations up to `revision` are known to be over."""
        return self.state is not None and self.present(epoch) and self.state.closed >= revision

    def weigh(self, engine: EngineId, overhead: int) -> None:
        """What `engine` takes here beside its pages."""
        self.overhead += overhead - self.overheads.pop(engine, 0)
        if overhead:
            self.overheads[engine] = overhead

    def dying(self, holder: Holder) -> bool:
        """Its death is proven, its pages are on their way back."""
        owners = self.state.owners if self.state is not None else ()
        return any(owner.holder == holder and not owner.alive for owner in owners)


def chargeable(held: Bytes) -> int:
    """Bytes that stand in a newcomer's way: all but cached ones, which the daemon takes at once (DESIGN §4)."""
    return held.weights + held.kv + held.overhead


def overhead(engine: EngineEntry, device: DeviceEntry) -> int:
    """Overhead of a process that has started, as far as the daemon does not charge it already."""
    if engine.spec is None or engine.phase is None or engine.phase is Phase.STARTING:
        return 0
    held = device.held.get(engine.spec.holder)
    return max(0, engine.spec.footprint.overhead - (held.overhead if held is not None else 0))


def by_holder(state: Device | None) -> Mapping[Holder, Bytes]:
    """`owners` summed by holder."""
    held: dict[Holder, Bytes] = {}
    for owner in state.owners if state is not None else ():
        before = held.get(owner.holder, Bytes())
        held[owner.holder] = Bytes(
            weights=before.weights + owner.bytes.weights,
            kv=before.kv + owner.bytes.kv,
            overhead=before.overhead + owner.bytes.overhead,
            cached=before.cached + owner.bytes.cached,
        )
    return held


def rounded(footprint: Bytes, chunk: int) -> int:
    """What a footprint takes of a device: weights and KV in whole chunks of their own, overhead as it is."""
    return pages(footprint, chunk) + footprint.overhead


def pages(footprint: Bytes, chunk: int) -> int:
    """Bytes of whole chunks for weights and for KV: kinds never share a chunk."""
    size = max(1, chunk)
    return (-(-footprint.weights // size) + -(-footprint.kv // size)) * size
