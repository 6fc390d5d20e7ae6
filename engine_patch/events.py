"""What an agent's state machine is told: what was seen, and what the steps it wanted have brought.

Every action that belongs to an operation is answered by exactly one event, or by `Failed`, which is final.
"""

from __future__ import annotations

import msgspec

from coordinator.core.model import Bytes, Step, Token


class Held(msgspec.Struct, frozen=True):
    """A token that stands on one of the engine's devices; `revision` is its mod_revision."""

    device: str
    token: Token
    revision: int


class Outcome(msgspec.Struct, frozen=True):
    """What an offload, a restore or the start-up brought: bytes as in `Residency`, and the steps it took."""

    held: Bytes = Bytes()
    restored: int = 0
    d2h: int = 0
    kv_saved: int = 0
    steps: tuple[Step, ...] = ()


class LeaseGained(msgspec.Struct, frozen=True):
    lease: int


class LeaseLost(msgspec.Struct, frozen=True):
    pass


class EpochSeen(msgspec.Struct, frozen=True):
    """The store's epoch as the watch shows it; None: the key is gone (PROTOCOL rule 13)."""

    epoch: str | None


class TokensSeen(msgspec.Struct, frozen=True):
    """All tokens that stand on the engine's devices now, whoever holds them."""

    tokens: tuple[Held, ...]


class Drained(msgspec.Struct, frozen=True):
    seconds: float


class Entered(msgspec.Struct, frozen=True):
    device: str
    seconds: float


class EnterRefused(msgspec.Struct, frozen=True):
    """`retry`: nothing is wrong with the fence, only the wait ended; asked again while the token stands."""

    device: str
    reason: str
    retry: bool = False
    unsure: bool = False
    """No answer came: the entry may stand at the daemon, and is left in any case."""


class Ready(msgspec.Struct, frozen=True):
    """Answer to `Restore`: pages are mapped and the copy runs; a forward pass waits for what it needs."""

    outcome: Outcome


class Worked(msgspec.Struct, frozen=True):
    """Answer to `Offload`, `Restore` and `Settle`."""

    outcome: Outcome


class Denied(msgspec.Struct, frozen=True):
    """The daemon denied pages to a restore; nothing was restored yet."""

    reason: str


class Undone(msgspec.Struct, frozen=True):
    seconds: float


class Resumed(msgspec.Struct, frozen=True):
    seconds: float


class Left(msgspec.Struct, frozen=True):
    device: str
    seconds: float


class Loaded(msgspec.Struct, frozen=True):
    """The server is up: weights and KV are in device pages, the host master stands."""

    outcome: Outcome


class Failed(msgspec.Struct, frozen=True):
    """The engine cannot go on: a step ended badly, a digest did not match, a process died."""

    reason: str


Event = (
    LeaseGained
    | LeaseLost
    | EpochSeen
    | TokensSeen
    | Drained
    | Entered
    | EnterRefused
    | Ready
    | Worked
    | Denied
    | Undone
    | Resumed
    | Left
    | Loaded
    | Failed
)
