"""Lazily started engines on one node whose host memory and device hold two of four, in any order of events.

Safety: whatever is ordered, what runs and what is ordered to run never exceeds the budget, judged by the truth; nobody
is stopped with requests inside. Liveness: once requests end and time passes, all that wait are served or refused."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from coordinator.core.commands import Command, Direct, Grant, Refuse
from coordinator.core.events import GrantRefused
from coordinator.core.model import Order, Phase, Policy
from coordinator.core.process import Life, Wish
from coordinator.core.settings import Settings
from tests.helpers.kept import KeptStage

MODELS = ("a", "b", "c", "d")
PROCESS, WEIGHTS, BUDGET = 10, 40, 110
models = st.sampled_from(MODELS)


class Kept(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.todo: list[Callable[[], None]] = []
        self.waiting = dict.fromkeys(MODELS, 0)
        self.inside = dict.fromkeys(MODELS, 0)
        self.refused: set[str] = set()
        self.up: set[str] = set()
        """From the order to run until the process has ended."""
        self.masters: set[str] = set()
        self.unused: set[str] = set()
        calm = Settings(keep_alive=None, min_residency=0.5)
        self.stage = KeptStage(budget=BUDGET, settings=calm, policy="cost_aware")
        for model in MODELS:
            self.take(self.stage.keep(model, size=PROCESS, weights=WEIGHTS, stop_after=50.0 if model == "b" else None))

    # ---- the world

    def take(self, commands: list[Command]) -> None:
        for command in commands:
            if isinstance(command, Direct):
                self.todo.append(lambda direct=command: self.effect(direct))  # type: ignore[misc]
            elif isinstance(command, Grant):
                self.todo.append(lambda grant=command: self.operate(grant))  # type: ignore[misc]
            elif isinstance(command, Refuse):
                self.refused.add(command.model)
                self.todo.append(lambda model=command.model: self.demand(model, 0))  # type: ignore[misc]

    def demand(self, model: str, count: int) -> None:
        self.waiting[model] = count
        self.take(self.stage.demand(model, count))

    def effect(self, direct: Direct) -> None:
        """Its transaction takes effect, and the supervisor obeys some time after."""
        engine, wish = direct.engine, direct.order.wish
        if wish is Wish.RUN:
            self.up.add(engine)
            held = len(self.up | (self.masters - self.unused))
            assert len(self.up) * PROCESS + held * WEIGHTS <= BUDGET, (self.up, self.masters, self.unused)
            self.todo.append(lambda: self.start(engine))
        elif wish is Wish.STOP:
            assert not self.inside[engine], f"{engine} is stopped with requests inside"
            self.todo.append(lambda: self.stop(engine))
        self.take(self.stage.obeyed(direct))

    def start(self, engine: str) -> None:
        self.take(self.stage.life(engine, Life.STARTING))
        self.take(self.stage.engine(engine, Phase.STARTING, weights=WEIGHTS))

    def operate(self, grant: Grant) -> None:
        engine = grant.holder.engine
        if engine not in self.stage.specs or self.stage.processes[engine].life is Life.STOPPED:
            self.take(self.stage.refused(grant, "its lease is dead"))
            return
        revision = self.stage.took(grant)
        self.take(self.stage.close(grant, revision))
        if grant.order is Order.RESTORE:
            self.masters.add(engine)
            self.unused.discard(engine)
            self.ram()
        self.take(self.stage.answer(grant, revision))
        if self.stage.processes[engine].life is Life.STARTING:
            self.take(self.stage.life(engine, Life.RUNNING))

    def stop(self, engine: str) -> None:
        self.take(self.stage.stopped(engine))
        self.up.discard(engine)
        self.todo.append(lambda: self.give_back(engine))

    def give_back(self, engine: str) -> None:
        if engine not in self.up:
            self.unused.add(engine)
            self.ram()

    def ram(self) -> None:
        masters, unused = len(self.masters) * WEIGHTS, len(self.unused & self.masters) * WEIGHTS
        self.take(self.stage.ram(BUDGET, masters=masters, unused=unused))

    def admit(self) -> None:
        """Gateways forward to whoever may be forwarded to."""
        for state in self.stage.scheduler.view().models:
            if state.endpoints and self.waiting.get(state.id):
                count, self.waiting[state.id] = self.waiting[state.id], 0
                self.inside[state.id] += count
                self.take(self.stage.load(state.id, running=self.inside[state.id]))
                self.take(self.stage.demand(state.id, 0))

    # ---- rules

    @rule(model=models, count=st.integers(1, 3))
    def requests_come(self, model: str, count: int) -> None:
        self.refused.discard(model)
        self.demand(model, self.waiting[model] + count)
        self.admit()

    @rule(model=models)
    def requests_end(self, model: str) -> None:
        if self.inside[model]:
            self.inside[model] = 0
            self.take(self.stage.load(model))

    @rule(model=models)
    def clients_leave(self, model: str) -> None:
        self.demand(model, 0)

    @rule(model=models, pin=st.booleans())
    def operator_pins(self, model: str, pin: bool) -> None:
        self.take(self.stage.policy(model, Policy(pin=True) if pin else None))

    @rule(seconds=st.sampled_from((0.01, 1.0, 20.0, 60.0)))
    def time_passes(self, seconds: float) -> None:
        self.take(self.stage.at(self.stage.now + seconds))

    @precondition(lambda self: self.todo)
    @rule(which=st.integers(0, 7))
    def something_happens(self, which: int) -> None:
        self.todo.pop(which % len(self.todo))()
        self.admit()

    @precondition(lambda self: self.stage.scheduler._starts._pending)
    @rule()
    def a_transaction_fails(self) -> None:
        """One that has not taken effect; what waits for its effect finds it given up."""
        id_, direct = next(iter(self.stage.scheduler._starts._pending.items()))
        self.todo = [each for each in self.todo if (each.__defaults__ or (None,))[0] is not direct]
        self.take(self.stage.hear(GrantRefused(id_, "etcd is away")))

    @invariant()
    def device_and_budget_hold(self) -> None:
        assert len(self.up) * PROCESS <= BUDGET

    def teardown(self) -> None:
        for model in MODELS:
            self.operator_pins(model, pin=False)
        for _ in range(600):
            while self.todo:
                self.something_happens(0)
            for model in MODELS:
                self.requests_end(model)
            if not any(self.waiting.values()):
                return
            self.time_passes(1.0)
        raise AssertionError(f"{self.waiting} wait for ever")


TestKept = Kept.TestCase
TestKept.settings = settings(max_examples=150, stateful_step_count=40, deadline=None, derandomize=True)
