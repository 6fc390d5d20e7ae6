"""Where an engine stands, from what etcd says of it: its own word (residency), the daemon's (owners, closed), the
leader's (seat, token). One answer, on which routing and every decision rest.

The device key is what counts (PROTOCOL, *Cost*): an operation is over when `closed` says so, pages are held by
`owners`. The engine's word may come later, or never if its lease died: it is waited for `Limits.answer_s`, no longer.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from coordinator.core.entries import FINAL, EngineEntry
from coordinator.core.ledger import Ledger
from coordinator.core.model import Order, Phase
from coordinator.core.settings import Limits


class Standing(StrEnum):
    """UNBORN waits for its start-up, STARTING is in it; ASLEEP may be restored; RETURNING: its restore is granted;
    SERVING: resident; LEAVING: offload or reclaim is granted; SETTLING: its word is awaited; RESTING: backs off after a
    failure; PARTIAL: holds pages that serve nothing; FAILED: will not come back by itself; SILENT: no word yet."""

    GONE = "gone"
    SILENT = "silent"
    UNBORN = "unborn"
    STARTING = "starting"
    ASLEEP = "asleep"
    RETURNING = "returning"
    SERVING = "serving"
    LEAVING = "leaving"
    SETTLING = "settling"
    RESTING = "resting"
    PARTIAL = "partial"
    FAILED = "failed"


class Stand(msgspec.Struct, frozen=True):
    """`until`: when this standing changes though nothing happens (monotonic seconds)."""

    standing: Standing
    until: float = float("inf")
    why: str = ""

    @property
    def orderable(self) -> bool:
        """Whether a resident may be ordered about: not before it has said what became of its last order."""
        return self.standing is Standing.SERVING and self.until == float("inf")


_AWAITED = "its word on its last operation is awaited"
_AT_REST = FINAL | {Phase.STARTING}
COMING = frozenset({Standing.RETURNING, Standing.STARTING})
ROUTABLE = frozenset({Standing.SERVING, Standing.RETURNING})


def answered(ledger: Ledger, engine: EngineEntry) -> bool:
    """Whether the engine rests in a phase that it reached under its newest order."""
    residency = engine.residency
    if engine.ordered is None:
        return True
    if residency is None or engine.phase not in FINAL or residency.busy or residency.fence is None:
        return False
    return residency.fence.epoch == ledger.epoch and residency.fence.revision >= engine.ordered_revision


def heard(ledger: Ledger, engine: EngineEntry) -> bool:
    """Whether it has said anything final since its newest order: the answer, or that it stayed as it was."""
    if answered(ledger, engine):
        return True
    busy = engine.residency is None or engine.residency.busy
    later = engine.residency_revision > engine.ordered_revision
    return later and not busy and (engine.phase in FINAL or engine.phase is Phase.STARTING)


def stand(ledger: Ledger, engine: EngineEntry, now: float, limits: Limits) -> Stand:
    """Where `engine` stands at `now`."""
    if engine.spec is None:
        return Stand(Standing.GONE)
    if engine.phase is None:
        return Stand(Standing.SILENT, why="it has not said yet where it is")
    over = all(ledger.device(d).reached(engine.ordered_revision, ledger.epoch) for d in engine.devices)
    if engine.ordered is not None and not over and not answered(ledger, engine):
        return _under_way(ledger, engine)
    if engine.residency is not None and engine.residency.busy:
        return Stand(Standing.SETTLING, why="it finishes what an earlier lease of it began")
    return _resting(ledger, engine, now, limits, over=over)


def _under_way(ledger: Ledger, engine: EngineEntry) -> Stand:
    if engine.ordered is not Order.RESTORE:
        return Stand(Standing.LEAVING)
    if engine.phase is Phase.STARTING:
        return Stand(Standing.STARTING)
    if _token_stands(ledger, engine):
        return Stand(Standing.RETURNING)
    return Stand(Standing.SETTLING, why="its restore goes on without its lease")


def _token_stands(ledger: Ledger, engine: EngineEntry) -> bool:
    tokens = [ledger.device(device).token for device in engine.devices]
    return all(token is not None and token.holder == engine.holder and token.lease == engine.lease for token in tokens)


def _resting(ledger: Ledger, engine: EngineEntry, now: float, limits: Limits, *, over: bool) -> Stand:
    """No operation of it is known to be under way. `over`: so say the device keys, and their owners are valid."""
    owned = len(ledger.owned(engine))
    complete = owned == len(engine.devices)
    due = max([engine.residency_at, *(ledger.device(d).closed_at for d in engine.devices)]) + limits.answer_s
    late, said = now >= due, heard(ledger, engine)
    if engine.phase is Phase.RESIDENT and (complete or not over):
        return Stand(Standing.SERVING) if late or said else Stand(Standing.SERVING, due, _AWAITED)
    if complete and engine.ordered is Order.RESTORE and not said and not late:
        return _answer_owed(ledger, engine, due)
    if owned and over:
        told = late or (engine.phase is Phase.OFFLOADED and said)
        return Stand(Standing.PARTIAL, why="it holds pages that serve nothing") if told else _settling(due)
    if engine.phase not in _AT_REST or not said or engine.phase is Phase.RESIDENT:
        return _absent(engine, now) if late else _settling(due)
    return _absent(engine, now)


def _answer_owed(ledger: Ledger, engine: EngineEntry, due: float) -> Stand:
    """The daemon has closed its restore and counts its pages: its own word is on its way."""
    if engine.phase is Phase.STARTING:
        return Stand(Standing.STARTING, due)
    return Stand(Standing.RETURNING, due) if _token_stands(ledger, engine) else _settling(due)


def _settling(due: float) -> Stand:
    return Stand(Standing.SETTLING, due, _AWAITED)


def _absent(engine: EngineEntry, now: float) -> Stand:
    """It holds no pages and nothing is under way."""
    error = engine.residency.error if engine.residency is not None else ""
    if engine.phase in (Phase.FAILED, Phase.STOPPED, Phase.LOST):
        return Stand(Standing.FAILED, why=error or f"it says that it is {engine.phase}")
    if now < engine.retry_at:
        return Stand(Standing.RESTING, engine.retry_at, error or "its last operation failed")
    return Stand(Standing.UNBORN if engine.phase is Phase.STARTING else Standing.ASLEEP)


def judge(ledger: Ledger, engine: EngineEntry, now: float, limits: Limits) -> None:
    """Count the outcome of the newest order, once: what was not brought about makes the engine rest before it is asked
    again. Called when its residency changed."""
    residency = engine.residency
    if residency is None or engine.ordered not in (Order.RESTORE, Order.OFFLOAD):
        return
    if engine.judged == engine.ordered_revision:
        return
    refused = bool(residency.error) and heard(ledger, engine)
    if not answered(ledger, engine) and not refused:
        return
    engine.judged = engine.ordered_revision
    over = all(ledger.device(d).reached(engine.ordered_revision, ledger.epoch) for d in engine.devices)
    wanted = Phase.RESIDENT if engine.ordered is Order.RESTORE else Phase.OFFLOADED
    kept = wanted is Phase.OFFLOADED and over and bool(ledger.owned(engine))
    if engine.phase is not wanted or kept:
        engine.failures += 1
        engine.retry_at = now + limits.backoff(engine.failures)
    elif engine.ordered is Order.RESTORE:
        engine.failures, engine.retry_at = 0, 0.0
