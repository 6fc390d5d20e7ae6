"""The agent's state machine against a world that loses leases, replaces tokens, refuses and delays: safety at every
step, and a liveness property: once the faults stop, a token that stands is obeyed."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from coordinator.core.model import Fence, Holder, Order, Phase, Residency, Token
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
from engine_patch.lifecycle import Lifecycle

ME = Holder("a", "n1")
DEVICES = ("local/0", "local/1")


class World(RuleBasedStateMachine):
    """Engine memory, a daemon per device, and etcd as the agent sees it. `todo` are actions not yet answered."""

    def __init__(self) -> None:
        super().__init__()
        self.life = Lifecycle(ME, DEVICES)
        self.todo: list[Action] = []
        self.published: Residency | None = None
        self.said: Residency | None = None
        """What went along with the last `leave`."""
        self.lease = 0
        self.leases = 0
        self.epoch: str | None = None
        self.epochs = 0
        self.revision = 0
        self.tokens: dict[str, Held] = {}
        self.open: dict[str, Fence] = {}
        self.mapped = False
        self.copying = False
        self.frozen = True
        self.top: dict[tuple[str, str], int] = {}
        self._tell(EpochSeen(None))
        self._new_epoch()
        self._tell(LeaseGained(self._new_lease()))

    # ---- the world's own moves

    def _new_lease(self) -> int:
        self.leases += 1
        self.lease = self.leases
        return self.lease

    def _new_epoch(self) -> None:
        self.epochs += 1
        self.epoch = f"e{self.epochs}"
        self.revision = 0
        self._tell(EpochSeen(self.epoch))

    def _tell(self, event: Event) -> None:
        for action in self.life.handle(event):
            self._take(action)

    def _take(self, action: Action) -> None:
        match action:
            case Register(residency=residency) | Publish(residency=residency):
                self.published = residency
                if isinstance(action, Publish) and not action.soon and self.said is not None:
                    assert residency == self.said, "what is published is what the daemon was given"
                    self.said = None
            case Renew():
                self._tell(LeaseGained(self._new_lease()))
            case Enter(device=device, fence=fence):
                key = (device, fence.epoch)
                assert fence.revision >= self.top.get(key, 0), "fences go up"
                self.top[key] = fence.revision
                self.todo.append(action)
            case Offload() | Restore() | Settle() | Undo():
                assert set(self.open) == set(DEVICES), "memory changes only when every device is entered"
                draining = any(isinstance(each, Drain) for each in self.todo)
                assert self.frozen or draining or not isinstance(action, Offload), "what runs is being frozen"
                self.todo.append(action)
            case Leave(device=device, fence=fence, residency=said):
                assert self.open.get(device) == fence, "what is left was entered"
                assert said is None or (said.fence == fence and not said.busy)
                self.said = said
                assert not self.copying, "an operation ends after its copy"
                self.todo.append(action)
            case Resume():
                assert self.mapped, "requests run on mapped memory only"
                assert not any(isinstance(each, Drain) for each in self.todo), "one call of the engine at a time"
                self.todo.append(action)
            case End():
                raise AssertionError(action.reason)
            case Drain():
                assert not self.copying, "nothing is taken away before its copy has ended"
                self.todo.append(action)

    def _show(self) -> None:
        self._tell(TokensSeen(tuple(self.tokens.values())))

    def _grant(self, order: Order) -> int:
        self.revision += 1
        token = Token(holder=ME, lease=self.lease, order=order, bytes=1)
        self.tokens = {d: Held(d, token, self.revision) for d in DEVICES}
        self._show()
        return self.revision

    def _answer(self, index: int, refuse: str = "", *, gated: bool = False) -> None:
        action = self.todo.pop(index % len(self.todo))
        match action:
            case Drain():
                self.frozen = True
                self._tell(Drained(0.0))
            case Enter(device=device, fence=fence):
                self._enter(device, fence, refuse)
            case Offload():
                self.frozen = True  # the engine waits for that itself
                self.mapped = False
                self._tell(Worked(Outcome()))
            case Restore():
                if refuse:
                    self._tell(Denied(refuse))
                else:
                    self.mapped, self.copying = True, gated
                    self._tell(Ready(Outcome()) if gated else Worked(Outcome()))
            case Settle():
                self.copying = False
                self._tell(Worked(Outcome()))
            case Undo():
                self._tell(Undone(0.0))
            case Resume():
                self.frozen = False
                self._tell(Resumed(0.0))
            case Leave(device=device):
                del self.open[device]
                self._tell(Left(device, 0.0))

    def _enter(self, device: str, fence: Fence, refuse: str) -> None:
        token = self.tokens.get(device)
        stands = token is not None and self.epoch == fence.epoch and token.revision == fence.revision
        if refuse == "timeout":
            self._tell(EnterRefused(device, refuse, retry=True))
        elif refuse or not stands:
            self._tell(EnterRefused(device, "stale"))
        else:
            self.open[device] = fence
            self._tell(Entered(device, 0.0))

    def _loading(self) -> bool:
        """Workers go on when a restore is open on all devices."""
        restoring = self.life.op is not None and self.life.op.order is Order.RESTORE
        return restoring and self.life.phase is Phase.STARTING and set(self.open) == set(DEVICES) and not self.mapped

    def _load(self) -> None:
        self.mapped = True
        self._tell(Loaded(Outcome()))

    # ---- rules: progress and faults in any order

    @precondition(lambda self: not self.open)
    @rule(order=st.sampled_from([Order.RESTORE, Order.OFFLOAD]))
    def grant(self, order: Order) -> None:
        self._grant(order)

    @precondition(lambda self: self.todo)
    @rule(index=st.integers(0, 7), refuse=st.sampled_from(["", "", "", "stale", "timeout"]), gated=st.booleans())
    def answer(self, index: int, refuse: str, gated: bool) -> None:
        self._answer(index, refuse, gated=gated)

    @precondition(lambda self: self._loading())
    @rule()
    def load(self) -> None:
        self._load()

    @rule()
    def lose_lease(self) -> None:
        self.tokens = {d: h for d, h in self.tokens.items() if h.token.lease != self.lease}
        self._tell(LeaseLost())
        self._show()

    @rule()
    def gain_lease(self) -> None:
        self._tell(LeaseGained(self._new_lease()))

    @rule()
    def lose_token(self) -> None:
        self.tokens = {}
        self._show()

    @rule(gone=st.booleans())
    def lose_store(self, gone: bool) -> None:
        self.tokens = {}
        if gone:
            self.epoch = None
            self._tell(EpochSeen(None))
        self._show()
        self._new_epoch()

    # ---- what always holds

    @invariant()
    def serving_means_mapped(self) -> None:
        assert self.mapped or self.frozen

    @invariant()
    def busy_exactly_while_entered(self) -> None:
        if self.life.op is None:
            assert not self.open

    def _settle(self, *, gated: bool = False) -> None:
        for _ in range(200):
            if self.todo:
                self._answer(0, gated=gated)
            elif self._loading():
                self._load()
            else:
                return
        raise AssertionError(f"does not settle: {self.life.phase}, {self.todo}")

    def teardown(self) -> None:
        """Liveness: faults stop; the operation under way ends, and the next token of each kind is obeyed."""
        self._tell(LeaseGained(self._new_lease()))
        self._settle()
        for turn, (order, phase) in enumerate(((Order.RESTORE, Phase.RESIDENT), (Order.OFFLOAD, Phase.OFFLOADED)) * 3):
            revision = self._grant(order)
            self._settle(gated=turn == 2)
            assert self.published is not None
            assert (self.published.phase, self.published.busy) == (phase, False)
            assert self.published.fence == Fence(self.epoch or "", revision)
            assert self.mapped is (phase is Phase.RESIDENT)
            assert self.frozen is (phase is Phase.OFFLOADED)
            assert not self.open


World.TestCase.settings = settings(
    max_examples=max(300, settings().max_examples), stateful_step_count=40, deadline=None
)
TestLifecycle = World.TestCase
