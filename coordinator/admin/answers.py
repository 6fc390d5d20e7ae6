"""What the operators' API answers, as types: the handlers fill them, the OpenAPI document describes them."""

from __future__ import annotations

import msgspec

from coordinator.core.model import Decision, Holder, Order, Policy
from coordinator.core.settings import Settings
from coordinator.core.view import DeviceState, EngineState, ModelState, PolicyState, State
from coordinator.core.why import Told
from coordinator.history import Sample, Switch, Ttft


class Bad(msgspec.Struct, frozen=True):
    """A value in etcd that does not decode: shown, never obeyed. `size` in bytes."""

    key: str
    size: int
    reason: str


class Whole(State, frozen=True, kw_only=True):
    """Everything that the coordinator of this name knows."""

    coordinator: str
    quarantined: tuple[Bad, ...] = ()

    @classmethod
    def of(cls, state: State, coordinator: str, quarantined: tuple[Bad, ...]) -> Whole:
        known = {name: getattr(state, name) for name in State.__struct_fields__}
        return cls(**known, coordinator=coordinator, quarantined=quarantined)


class Devices(msgspec.Struct, frozen=True):
    devices: tuple[DeviceState, ...]


class Engines(msgspec.Struct, frozen=True):
    engines: tuple[EngineState, ...]


class Models(msgspec.Struct, frozen=True):
    models: tuple[ModelState, ...]


class OneModel(msgspec.Struct, frozen=True):
    """A model, what the file says of it, what stands in etcd over that, and its engines. `state` null: it is configured
    and no engine of it has ever registered."""

    model: str
    configured: Settings
    policy: Policy
    state: ModelState | None
    engines: tuple[EngineState, ...]


class TokenView(msgspec.Struct, frozen=True):
    """A device's memory token. `fence` orders operations within `epoch`; `stands`: the token is there, so its holder's
    lease lives; `over`: the daemon has closed the operation; `entered`: the holder is at it now. `blocked`: why nothing
    may be granted now; empty: it may."""

    device: str
    epoch: str | None
    fence: int
    closed: int
    holder: Holder | None
    order: Order | None
    limit_s: float
    stands: bool
    entered: bool
    over: bool
    blocked: str


class Tokens(msgspec.Struct, frozen=True):
    tokens: tuple[TokenView, ...]


class Decisions(msgspec.Struct, frozen=True):
    decisions: tuple[Decision, ...]


class WhyAnswer(msgspec.Struct, frozen=True):
    model: str
    told: tuple[Told, ...]


class Eviction(msgspec.Struct, frozen=True):
    """Who chooses what leaves, and how often the shadow policy would have chosen otherwise: of `judged` decisions that
    stand in etcd, those in which it `differed`, the newest first."""

    policy: PolicyState
    judged: int
    differed: tuple[Decision, ...]


class History(msgspec.Struct, frozen=True):
    """Device memory since this process started, as far as it is kept, and the switches it ordered, oldest first; how
    soon this gateway's newest requests were answered, by model."""

    samples: tuple[Sample, ...]
    switches: tuple[Switch, ...]
    ttft: dict[str, Ttft]


class PolicyAnswer(msgspec.Struct, frozen=True):
    model: str
    policy: Policy


class OrderAnswer(msgspec.Struct, frozen=True):
    """The leader `accepted_by` has it in its inbox."""

    model: str
    order: Order
    accepted_by: str


class Trouble(msgspec.Struct, frozen=True):
    message: str
    type: str
    param: str | None
    code: str


class Refusal(msgspec.Struct, frozen=True):
    """Every error, in OpenAI's shape."""

    error: Trouble


def token_of(device: DeviceState, epoch: str | None) -> TokenView:
    seat = device.seat
    return TokenView(
        device=device.id,
        epoch=epoch,
        fence=device.seat_revision,
        closed=device.closed,
        holder=seat.holder if seat is not None else None,
        order=seat.order if seat is not None else None,
        limit_s=seat.limit_s if seat is not None else 0.0,
        stands=device.token is not None,
        entered=device.open is not None,
        over=device.present and device.closed >= device.seat_revision,
        blocked=device.blocked,
    )
