"""What the scheduler knows, as one immutable value for the admin API, metrics and people.

Bytes are ints in bytes, durations seconds as of the last event; JSON-encodable by msgspec as it is.
"""

from __future__ import annotations

import msgspec

from coordinator.core.commands import Endpoint
from coordinator.core.model import Bytes, Holder, Open, Order, Phase, Seat, Token
from coordinator.core.settings import Settings


class OwnerState(msgspec.Struct, frozen=True):
    """Who holds pages. `lost_s`: how long its spec has been away; None: it is registered."""

    holder: Holder
    bytes: Bytes
    alive: bool
    lost_s: float | None = None


class DeviceState(msgspec.Struct, frozen=True):
    """`blocked`: why nothing may be granted on it now; empty: it is ready. `present`: its daemon's key stands."""

    id: str
    present: bool
    capacity: int
    charged: int
    blocked: str
    open: Open | None = None
    seat: Seat | None = None
    seat_revision: int = 0
    closed: int = 0
    owners: tuple[OwnerState, ...] = ()
    token: Token | None = None
    """Stands as long as its holder's lease; the seat stays."""


class EngineState(msgspec.Struct, frozen=True):
    """`standing` is the scheduler's word for where it is (`core.standing`), `phase` the engine's own."""

    id: str
    model: str
    url: str
    devices: tuple[str, ...]
    phase: Phase | None
    standing: str
    why: str
    footprint: Bytes
    held: Bytes
    running: int
    waiting: int
    idle_s: float
    failures: int = 0
    error: str = ""


class ModelState(msgspec.Struct, frozen=True):
    """`waiting`: requests at gateways and engines; `waiting_s`: since when it has waited to be served, None if it does
    not; `refused`: why it cannot be served, empty if it can."""

    id: str
    settings: Settings
    engines: tuple[str, ...]
    endpoints: tuple[Endpoint, ...]
    waiting: int
    waiting_s: float | None = None
    refused: str = ""


class PolicyState(msgspec.Struct, frozen=True):
    """Who chooses the resident that leaves. `shadow`: who is asked too and not obeyed. `woken`, `regretted`: restores
    by prediction, and those of them that left again unused."""

    name: str
    options: dict[str, object]
    shadow: str | None
    predict: bool
    woken: int = 0
    regretted: int = 0


class PendingState(msgspec.Struct, frozen=True):
    """A command whose answer is not there yet."""

    id: int
    order: Order
    engine: str
    devices: tuple[str, ...]


class State(msgspec.Struct, frozen=True):
    """Everything, as of `revision`."""

    leading: bool
    epoch: str | None
    revision: int
    devices: tuple[DeviceState, ...] = ()
    engines: tuple[EngineState, ...] = ()
    models: tuple[ModelState, ...] = ()
    pending: tuple[PendingState, ...] = ()
    next_decision: int = 0
