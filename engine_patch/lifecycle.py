"""PURE state machine of an engine's agent: PROTOCOL rule 5, the mirror of the coordinator's core.

Events in (what was seen, what a step brought), actions out (what to do next). It knows no clock, no etcd and no vLLM:
seconds arrive in events, and the agent carries the actions out. At most one operation is under way; every action that
belongs to it is answered by exactly one event, or by `Failed`, which is final.

    resident --offload--> drain and enter -> offload -> leave -> publish offloaded
    offloaded --restore-> enter -> restore -> resume and leave -> publish resident
                                        \\--> resume and settle -> leave -> publish resident
    starting --restore--> enter -> (workers load) -> resume and leave -> publish resident

The second way is that of an engine whose layers wait for their own bytes: requests run while the copy goes on, but the
operation, and with it the entry at the daemon, ends only after the copy.

`offload` is ordered as soon as every device is entered: the engine itself lets no page leave before what runs is frozen
(`engine.Engine`), which is sooner than this could be told of it.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from coordinator.core.model import Fence, Holder, Order, Phase, Residency, Step
from engine_patch.actions import (
    Action,
    Drain,
    End,
    Enter,
    Leave,
    Offload,
    Publish,
    Register,
    Renew,
    Restore,
    Resume,
    Settle,
    Undo,
)
from engine_patch.events import (
    Denied,
    Drained,
    Entered,
    EnterRefused,
    EpochSeen,
    Event,
    Failed,
    Held,
    LeaseGained,
    LeaseLost,
    Left,
    Loaded,
    Outcome,
    Ready,
    Resumed,
    TokensSeen,
    Undone,
    Worked,
)

MAX_STEPS = 32


class Stage(StrEnum):
    """Where the operation under way stands. `ENTER`: devices are entered and, before pages leave, what runs begins to
    be frozen. `SETTLE`: requests run, the copy goes on. `CLOSE`: memory is as it should be;
    resume and leaves are under way."""

    ENTER = "enter"
    WORK = "work"
    SETTLE = "settle"
    UNDO = "undo"
    CLOSE = "close"


class _Operation:
    """One token being obeyed."""

    def __init__(self, order: Order, fence: Fence, before: Phase) -> None:
        self.order = order
        self.fence = fence
        self.before = before
        self.stage = Stage.ENTER
        self.draining = False
        self.asked: set[str] = set()
        self.entered: set[str] = set()
        self.unsure: set[str] = set()
        """Devices whose last `enter` had no definite answer: it may stand, so it is left as if it did."""
        self.refusal = ""
        self.leaving: set[str] = set()
        self.resuming = False
        self.reached: Phase | None = None
        self.answer: Residency | None = None
        """What it came to: known before it is left, so that the daemon can put it beside `closed`."""
        self.outcome = Outcome()
        self.error = ""
        self.steps: list[Step] = []

    @property
    def works(self) -> bool:
        """Whether memory must change: a token may order what is already so."""
        if self.order is Order.OFFLOAD:
            return self.before is Phase.RESIDENT
        return self.before in (Phase.OFFLOADED, Phase.STARTING)


class Lifecycle:
    """See the module. `handle` never raises for any order of events that answer the actions it gave out."""

    def __init__(self, holder: Holder, devices: tuple[str, ...]) -> None:
        self.holder = holder
        self.devices = devices
        self.phase = Phase.STARTING
        self.lease: int | None = None
        self.epoch: str | None = None
        self.last = 0
        self.tokens: tuple[Held, ...] = ()
        self.op: _Operation | None = None
        self._told = Residency(holder=holder, phase=Phase.STARTING)

    def handle(self, event: Event) -> tuple[Action, ...]:
        if self.phase is Phase.FAILED:
            return self._afterlife(event)
        match event:
            case LeaseGained(lease=lease):
                self.lease, self.last = lease, 0
                return (Register(self._residency()), *self._consider())
            case LeaseLost():
                self.lease, self.last = None, 0
                return ()
            case EpochSeen(epoch=epoch):
                return self._on_epoch(epoch)
            case TokensSeen(tokens=tokens):
                self.tokens = tokens
                return self._consider()
            case Failed(reason=reason):
                return self._fail(reason)
            case _:
                return self._on_answer(event)

    @property
    def restoring(self) -> bool:
        """Whether a restore is under way."""
        return self.op is not None and self.op.order is Order.RESTORE

    def _on_epoch(self, epoch: str | None) -> tuple[Action, ...]:
        before, self.epoch = self.epoch, epoch
        if epoch == before:
            return ()
        self.last = 0
        if before is None or self.lease is None:
            return self._consider()
        self.lease = None
        return (Renew(),)

    def _afterlife(self, event: Event) -> tuple[Action, ...]:
        return (Register(self._told),) if isinstance(event, LeaseGained) else ()

    def _fail(self, reason: str) -> tuple[Action, ...]:
        fence = self.op.fence if self.op else self._told.fence
        self.phase = Phase.FAILED
        self._told = Residency(holder=self.holder, phase=Phase.FAILED, fence=fence, error=reason[:4096])
        return (Publish(self._told), End(reason))

    # ---- which token to obey

    def _permit(self) -> Held | None:
        """The token that permits an operation now: one revision on every device, of the own lease, above the last."""
        if self.lease is None or self.epoch is None:
            return None
        mine = {h.device: h for h in self.tokens if h.token.holder == self.holder and h.token.lease == self.lease}
        revisions = {mine[d].revision for d in self.devices if d in mine}
        if len(revisions) != 1 or any(d not in mine for d in self.devices):
            return None
        held = mine[self.devices[0]]
        return held if held.revision > self.last else None

    def _stands(self, op: _Operation) -> bool:
        held = self._permit()
        return held is not None and self.epoch == op.fence.epoch and held.revision == op.fence.revision

    def _consider(self) -> tuple[Action, ...]:
        held = self._permit()
        if self.op is not None or held is None or self.epoch is None:
            return ()
        op = _Operation(held.token.order, Fence(self.epoch, held.revision), self.phase)
        self.op = op
        if not op.works:
            return self._enter(op, self.devices)
        if op.order is Order.OFFLOAD:
            self.phase, op.draining = Phase.DRAINING, True
            return (Publish(self._residency(), soon=True), Drain(), *self._enter(op, self.devices))
        if self.phase is Phase.OFFLOADED:
            self.phase = Phase.RESTORING
        return (Publish(self._residency(), soon=True), *self._enter(op, self.devices))

    # ---- the operation, step by step

    def _on_answer(self, event: Event) -> tuple[Action, ...]:
        op = self.op
        if op is None:
            return self._fail(f"{type(event).__name__} came while no operation was under way")
        match op.stage, event:
            case ((Stage.ENTER | Stage.WORK | Stage.CLOSE), Drained(seconds=seconds)) if op.draining:
                op.draining = False
                op.steps.append(Step("drain", seconds))
                return self._on_drained(op)
            case Stage.ENTER, Entered(device=device, seconds=seconds):
                op.asked.discard(device)
                op.entered.add(device)
                op.unsure.discard(device)
                op.steps.append(Step("enter", seconds))
                return self._on_entry(op)
            case Stage.ENTER, EnterRefused(device=device, reason=reason, retry=retry, unsure=unsure):
                (op.unsure.add if unsure else op.unsure.discard)(device)
                if retry and not op.refusal and self._stands(op):
                    return (Enter(device, op.fence),)
                op.refusal = op.refusal or reason
                op.asked.discard(device)
                return self._on_entry(op)
            case Stage.WORK, Worked(outcome=outcome) | Loaded(outcome=outcome):
                return self._on_worked(op, outcome)
            case Stage.WORK, Ready(outcome=outcome) if op.order is Order.RESTORE:
                op.stage, op.resuming = Stage.SETTLE, True
                op.steps.extend(outcome.steps)
                return (Resume(), Settle())
            case Stage.SETTLE, Worked(outcome=outcome):
                op.outcome = outcome
                op.steps.extend(outcome.steps)
                return self._close(op, Phase.RESIDENT, resume=False)
            case Stage.WORK, Denied(reason=reason):
                op.stage, op.error = Stage.UNDO, reason
                return (Undo(),)
            case Stage.UNDO, Undone(seconds=seconds):
                op.steps.append(Step("undo", seconds))
                return self._close(op, Phase.OFFLOADED, resume=False)
            case ((Stage.SETTLE | Stage.CLOSE), Resumed(seconds=seconds)):
                op.steps.append(Step("resume", seconds))
                op.resuming = False
                return self._on_closed(op)
            case Stage.CLOSE, Left(device=device):
                op.leaving.discard(device)
                return self._on_closed(op)
        return self._fail(f"{type(event).__name__} came in stage {op.stage}")

    def _enter(self, op: _Operation, devices: tuple[str, ...]) -> tuple[Action, ...]:
        op.stage = Stage.ENTER
        op.asked.update(devices)
        return tuple(Enter(device, op.fence) for device in devices)

    def _on_drained(self, op: _Operation) -> tuple[Action, ...]:
        if op.stage is Stage.ENTER:
            return self._on_entry(op)
        return self._on_closed(op) if op.stage is Stage.CLOSE else ()

    def _on_entry(self, op: _Operation) -> tuple[Action, ...]:
        if op.asked:
            return ()
        if op.refusal:
            return () if op.draining else self._give_up(op)
        if not op.works:
            return self._close(op, op.before, resume=False)
        op.stage = Stage.WORK
        if op.order is Order.OFFLOAD:
            return (Offload(),)
        return () if op.before is Phase.STARTING else (Restore(),)

    def _give_up(self, op: _Operation) -> tuple[Action, ...]:
        """Never fully entered: leave what was entered, touch nothing, be as before."""
        op.error = op.refusal and f"enter refused: {op.refusal}"
        return self._close(op, op.before, resume=op.before is Phase.RESIDENT)

    def _on_worked(self, op: _Operation, outcome: Outcome) -> tuple[Action, ...]:
        op.outcome = outcome
        op.steps.extend(outcome.steps)
        restored = op.order is Order.RESTORE
        return self._close(op, Phase.RESIDENT if restored else Phase.OFFLOADED, resume=restored)

    def _close(self, op: _Operation, phase: Phase, *, resume: bool) -> tuple[Action, ...]:
        op.stage, op.reached = Stage.CLOSE, phase
        op.resuming = op.resuming or resume
        op.leaving = op.entered | op.unsure
        op.answer = self._answer(op, phase)
        beside = None if op.refusal else op.answer
        actions: list[Action] = [Resume()] if resume else []
        actions += [Leave(device, op.fence, beside) for device in sorted(op.leaving)]
        return tuple(actions) or self._on_closed(op)

    def _on_closed(self, op: _Operation) -> tuple[Action, ...]:
        if op.draining or op.resuming or op.leaving or op.reached is None or op.answer is None:
            return ()
        self.op, self.phase = None, op.reached
        if self.epoch == op.fence.epoch and self.lease is not None:
            self.last = max(self.last, op.fence.revision)
        self._told = op.answer
        return (Publish(self._told), *self._consider())

    def _answer(self, op: _Operation, phase: Phase) -> Residency:
        entered = bool(op.entered) and not op.refusal
        return Residency(
            holder=self.holder,
            phase=phase,
            fence=op.fence if entered else self._told.fence,
            held=op.outcome.held if op.works and entered else self._told.held,
            steps=tuple(op.steps[:MAX_STEPS]),
            restored=op.outcome.restored,
            d2h=op.outcome.d2h,
            kv_saved=op.outcome.kv_saved,
            error=op.error[:4096],
        )

    def _residency(self) -> Residency:
        """The truth as it is now: under way means the phase in between, `busy` from the first entry on."""
        if self.op is None:
            return self._told
        return msgspec.structs.replace(self._told, phase=self.phase, busy=bool(self.op.entered))
