"""Orders, in the imperative: everything the scheduler can want from the world. `effects.perform` carries them out."""

from __future__ import annotations

import msgspec

from coordinator.core.model import Decision, DeviceId, EngineId, Holder, ModelId, Order
from coordinator.core.process import ProcessOrder


class SeatAt(msgspec.Struct, frozen=True):
    """A device of the holder and the mod_revision of its seat as last seen (0: no seat yet)."""

    device: DeviceId
    revision: int


class Grant(msgspec.Struct, frozen=True, tag=True):
    """PROTOCOL rule 2, one transaction. Compares: own election key's create revision, `epoch`, each seat's
    mod_revision, the spec's mod_revision. Puts: a token on `lease` and a seat for each device, and the decision.
    Answered by `Granted` or `GrantRefused` with the same `id`; a lost reply is read back from the seats."""

    id: int
    order: Order
    holder: Holder
    lease: int
    spec_revision: int
    epoch: str
    election_key: str
    election_revision: int
    seats: tuple[SeatAt, ...]
    bytes: int
    limit_s: float
    decision: Decision


class Reclaim(msgspec.Struct, frozen=True, tag=True):
    """PROTOCOL rule 10: as a grant, without spec compare and lease; deletes the tokens, puts `reclaim` seats. The
    daemon then kills the holder, takes its pages back and closes."""

    id: int
    holder: Holder
    epoch: str
    election_key: str
    election_revision: int
    seats: tuple[SeatAt, ...]
    limit_s: float
    decision: Decision


class Direct(msgspec.Struct, frozen=True, tag=True):
    """An order to whoever keeps an engine's process, one transaction. Compares: own election key's create revision, the
    mod_revision of `processes/<engine>` (0: there is none). Puts: the order, and the decision. Answered by `Granted` or
    `GrantRefused` with the same `id`; a lost reply is read back from the key."""

    id: int
    engine: EngineId
    order: ProcessOrder
    revision: int
    election_key: str
    election_revision: int
    decision: Decision


class Endpoint(msgspec.Struct, frozen=True, order=True):
    """An engine that may be sent a model's requests now; `engine` and `url` from its spec."""

    engine: EngineId
    url: str


class Route(msgspec.Struct, frozen=True, tag=True):
    """Where requests for `model` may be forwarded from now on; none: hold them. Sent on change, by leader and standby
    alike: an engine is an endpoint while resident, and from the moment its restore is granted (its own gate holds what
    comes early). `gone`: no engine of this model is known any more."""

    model: ModelId
    endpoints: tuple[Endpoint, ...]
    aliases: tuple[str, ...] = ()
    gone: bool = False


class Refuse(msgspec.Struct, frozen=True, tag=True):
    """What waits for `model` cannot be served for now, and why: answer 503 with `Retry-After: retry_after_s`."""

    model: ModelId
    reason: str
    retry_after_s: float


Command = Grant | Reclaim | Direct | Route | Refuse
