"""What an agent's state machine wants done; in parentheses the event that answers it."""

from __future__ import annotations

import msgspec

from coordinator.core.model import Fence, Residency


class Register(msgspec.Struct, frozen=True):
    """Put spec, residency and load on the new lease."""

    residency: Residency


class Renew(msgspec.Struct, frozen=True):
    """The store's life ended: the lease is void, take a new one (answered by `LeaseGained`)."""


class Publish(msgspec.Struct, frozen=True):
    """Put the residency. `soon`: only if it still holds a moment later, to spare a write on short operations."""

    residency: Residency
    soon: bool = False


class Drain(msgspec.Struct, frozen=True):
    """Close the gate and freeze what runs (`Drained`)."""


class Enter(msgspec.Struct, frozen=True):
    """Enter at the daemon (`Entered` or `EnterRefused`)."""

    device: str
    fence: Fence


class Offload(msgspec.Struct, frozen=True):
    """Save written KV, unmap everything (`Worked`)."""


class Restore(msgspec.Struct, frozen=True):
    """Map, copy back, check (`Worked` or `Denied`; `Ready` where requests may run while the copy goes on)."""


class Settle(msgspec.Struct, frozen=True):
    """Wait until the copy behind a `Ready` restore has ended and was checked (`Worked`)."""


class Undo(msgspec.Struct, frozen=True):
    """Unmap what a denied restore has mapped (`Undone`)."""


class Resume(msgspec.Struct, frozen=True):
    """Let requests run again and open the gate (`Resumed`)."""


class Leave(msgspec.Struct, frozen=True):
    """Leave at the daemon, until it has heard it (`Left`). `residency`: what is published next, for the daemon to put
    beside its own key; None: there is nothing to say of this operation."""

    device: str
    fence: Fence
    residency: Residency | None = None


class End(msgspec.Struct, frozen=True):
    """Answer what is open with an error and end every process of the engine."""

    reason: str


Action = Register | Renew | Publish | Drain | Enter | Offload | Restore | Settle | Undo | Resume | Leave | End
