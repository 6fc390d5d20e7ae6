"""Facts, in the past tense: everything that can make the scheduler think. `None` as a value means: the key is gone.

`revision` is the mod_revision of the key (of its deletion, where it is gone), `lease` the etcd lease that carries it
(0: none).
"""

from __future__ import annotations

import msgspec

from coordinator.core.model import (
    Demand,
    Device,
    DeviceId,
    EngineId,
    Epoch,
    Load,
    ModelId,
    Order,
    Policy,
    Refusal,
    Residency,
    Seat,
    Spec,
    Token,
)
from coordinator.core.process import Process, ProcessOrder
from coordinator.core.settings import Settings


class SpecSeen(msgspec.Struct, frozen=True, tag=True):
    engine: EngineId
    spec: Spec | None
    revision: int
    lease: int = 0


class ResidencySeen(msgspec.Struct, frozen=True, tag=True):
    engine: EngineId
    residency: Residency | None
    revision: int


class LoadSeen(msgspec.Struct, frozen=True, tag=True):
    engine: EngineId
    load: Load | None
    revision: int


class DeviceSeen(msgspec.Struct, frozen=True, tag=True):
    device: DeviceId
    state: Device | None
    revision: int


class ProcessSeen(msgspec.Struct, frozen=True, tag=True):
    """A supervisor's word about the process of an engine that it keeps on `node`."""

    node: str
    engine: EngineId
    process: Process | None
    revision: int


class ProcessOrderSeen(msgspec.Struct, frozen=True, tag=True):
    engine: EngineId
    order: ProcessOrder | None
    revision: int


class TokenSeen(msgspec.Struct, frozen=True, tag=True):
    device: DeviceId
    token: Token | None
    revision: int


class SeatSeen(msgspec.Struct, frozen=True, tag=True):
    device: DeviceId
    seat: Seat | None
    revision: int


class EpochSeen(msgspec.Struct, frozen=True, tag=True):
    epoch: Epoch | None
    revision: int


class PolicySeen(msgspec.Struct, frozen=True, tag=True):
    model: ModelId
    policy: Policy | None
    revision: int


class DemandSeen(msgspec.Struct, frozen=True, tag=True):
    """Requests that wait at some gateway: read from its key, or posted by the gateway in the leader's own process."""

    gateway: str
    model: ModelId
    demand: Demand | None


class RefusalSeen(msgspec.Struct, frozen=True, tag=True):
    """What the leader tells the gateways of other processes about a model; it is no news to the leader's core."""

    model: ModelId
    refusal: Refusal | None


class DecisionSeen(msgspec.Struct, frozen=True, tag=True):
    """A decision stands in etcd: the next leader numbers its own above it."""

    n: int


Fact = (
    SpecSeen
    | ResidencySeen
    | LoadSeen
    | DeviceSeen
    | TokenSeen
    | SeatSeen
    | EpochSeen
    | PolicySeen
    | DemandSeen
    | RefusalSeen
    | DecisionSeen
    | ProcessSeen
    | ProcessOrderSeen
)


class Listed(msgspec.Struct, frozen=True, tag=True):
    """The whole prefix as of `revision`: replaces all that was known, except demand posted in this process."""

    facts: tuple[Fact, ...]
    revision: int


class Changed(msgspec.Struct, frozen=True, tag=True):
    """All changes of one revision, together: a transaction is never seen half."""

    facts: tuple[Fact, ...]
    revision: int


class LeadershipGained(msgspec.Struct, frozen=True, tag=True):
    """This process leads. Every grant compares the create revision of `key`."""

    key: str
    create_revision: int


class LeadershipLost(msgspec.Struct, frozen=True, tag=True):
    pass


class Granted(msgspec.Struct, frozen=True, tag=True):
    """The transaction of command `id` took effect: its seats carry `revision`."""

    id: int
    revision: int


class GrantRefused(msgspec.Struct, frozen=True, tag=True):
    """The transaction of command `id` did not take effect: some compare failed, the lease is dead, or etcd is away.
    The scheduler decides anew from what it sees."""

    id: int
    reason: str


class OrderAsked(msgspec.Struct, frozen=True, tag=True):
    """An operator asks for `restore` (wake) or `offload` (sleep) of a model, once."""

    model: ModelId
    order: Order
    by: str = "admin"


class Reconfigured(msgspec.Struct, frozen=True, tag=True):
    """`vnpu.yaml` was read again: how models are treated from now on. A policy whose name and options are as before
    keeps its memory. Names and options were checked by whoever read the file."""

    defaults: Settings
    models: dict[ModelId, Settings]
    policy: str
    options: dict[str, object] = {}
    shadow: str | None = None
    predict: bool = False


class Tick(msgspec.Struct, frozen=True, tag=True):
    """Time passed: `Scheduler.deadline()` had asked to be called now."""


Event = (
    Listed
    | Changed
    | DemandSeen
    | LeadershipGained
    | LeadershipLost
    | Granted
    | GrantRefused
    | OrderAsked
    | Reconfigured
    | Tick
)
