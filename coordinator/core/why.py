"""Why a model came, stays away or left: the decisions that tell, newest first, in sentences. Pure."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from coordinator.core.model import Decision, Order

NEWEST = 5
_DONE = {
    Order.RESTORE: "came back",
    Order.OFFLOAD: "left",
    Order.RECLAIM: "was reclaimed",
    Order.RUN: "was started",
    Order.CLOSE: "takes nothing new",
    Order.STOP: "was stopped",
}


class Told(msgspec.Struct, frozen=True):
    """One decision as people read it. `at`: Unix time; `what` and `because` are sentences, `looked_at` one line for
    each candidate, who would leave first in front; `shadow`: what another policy would have done."""

    n: int
    at: float
    what: str
    because: str
    looked_at: tuple[str, ...] = ()
    shadow: str = ""


def why(model: str, engines: Iterable[str], decisions: Iterable[Decision], count: int = NEWEST) -> list[Told]:
    """The newest `count` decisions about `model`: about its `engines`, for its requests, or those in which one of its
    engines was looked at and stayed."""
    own = {*engines}
    told = [_told(model, own, each) for each in decisions if concerns(model, own, each)]
    return sorted(told, key=lambda each: each.n, reverse=True)[:count]


def concerns(model: str, own: set[str], decision: Decision) -> bool:
    """Whether it is about one of `model`'s `own` engines, for its requests, or looked at one that stayed."""
    return decision.engine in own or decision.wanted == model or any(c.engine in own for c in decision.candidates)


def _told(model: str, own: set[str], decision: Decision) -> Told:
    place = ", ".join(decision.devices)
    what = f"{decision.engine} {_DONE[decision.order]} on {place}"
    if decision.order is Order.OFFLOAD and decision.wanted:
        what += f" to make room for {decision.wanted}"
    if decision.engine not in own and decision.wanted != model:
        what += f"; {', '.join(sorted(own & {c.engine for c in decision.candidates}))} stayed"
    by = f" (policy {decision.policy})" if decision.policy else ""
    looked_at = tuple(f"{c.engine}: {c.why}" for c in sorted(decision.candidates, key=lambda c: (c.score, c.engine)))
    return Told(decision.n, decision.at, what, f"{decision.cause}{by}", looked_at, decision.shadow)
