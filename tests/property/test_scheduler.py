"""The scheduler in a world that Hypothesis breaks step by step: safety after every step (I1, I4, grants on closed seats
only, nobody made to leave before his time), liveness once nothing breaks any more (everything that fits is served)."""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from coordinator.core.model import Bytes, Order, Policy
from coordinator.core.settings import Settings
from tests.helpers.sim.engine import Kind, SimEngine
from tests.helpers.sim.scenario import SETTLE_S, probe, settled
from tests.helpers.sim.world import World

MODELS = ("a", "b", "c", "g")
CAPACITY = {"n/0": 60, "n/1": 60}
KINDS = (
    Kind("a", ("n/0",), Bytes(weights=30, kv=6), boot_s=0.5),
    Kind("b", ("n/0",), Bytes(weights=20, kv=6), boot_s=0.5),
    Kind("c", ("n/1",), Bytes(weights=40), boot_s=0.5),
    Kind("g", ("n/0", "n/1"), Bytes(weights=24), boot_s=0.5),
)

models = st.sampled_from(MODELS)
policies = st.one_of(
    st.none(),
    st.builds(
        Policy,
        pin=st.sampled_from((None, True)),
        drained=st.booleans(),
        priority=st.sampled_from((None, -1, 3)),
        keep_alive=st.sampled_from((None, 0.0, 1.0)),
        min_residency=st.sampled_from((None, 0.1, 3.0)),
    ),
)


class SchedulerMachine(RuleBasedStateMachine):
    """Two devices, three models and a group over both; nothing fits beside everything else."""

    world: World

    @initialize(seed=st.integers(0, 2**16), started=st.booleans())
    def begin(self, seed: int, started: bool) -> None:
        self.world = World(seed, CAPACITY, KINDS, settings=Settings(keep_alive=20.0, min_residency=1.0))
        self.world.run(15.0 if started else 0.0)

    def _engine(self, model: str) -> SimEngine:
        return self.world.engines[model]

    @rule(seconds=st.sampled_from((0.001, 0.02, 0.1, 0.5, 2.0, 10.0)))
    def time_passes(self, seconds: float) -> None:
        self.world.run(seconds)

    @rule(model=models, count=st.integers(1, 5), gateway=st.integers(0, 1), work=st.sampled_from((0.05, 1.0, 4.0)))
    def requests_come(self, model: str, count: int, gateway: int, work: float) -> None:
        for _ in range(count):
            self.world.request(model, work, gateway)

    @rule(model=models)
    def request_comes_to_the_engine(self, model: str) -> None:
        self.world.direct(model)

    @rule(model=models, order=st.sampled_from((Order.RESTORE, Order.OFFLOAD)))
    def operator_asks(self, model: str, order: Order) -> None:
        self.world.ask(model, order)

    @rule(model=models, policy=policies)
    def operator_decides(self, model: str, policy: Policy | None) -> None:
        self.world.policy(model, policy)

    @precondition(lambda self: any(engine.alive for engine in self.world.engines.values()))
    @rule(model=models)
    def engine_crashes(self, model: str) -> None:
        self.world.crash(self._engine(model))

    @rule(model=models, seconds=st.sampled_from((0.3, 6.0, 20.0, float("inf"))))
    def engine_hangs(self, model: str, seconds: float) -> None:
        engine = self._engine(model)
        if engine.alive and not engine.process.frozen:
            self.world.hang(engine, seconds)

    @rule(model=models)
    def lease_expires(self, model: str) -> None:
        if self._engine(model).alive:
            self.world.expire(self._engine(model))

    @rule(seconds=st.sampled_from((0.05, 3.0)))
    def daemon_restarts(self, seconds: float) -> None:
        self.world.restart_daemon("n", seconds)

    @rule()
    def daemon_denies(self) -> None:
        self.world.daemons["n"].denials += 1

    @rule(deaf=st.sampled_from((0.0, 1.0, 8.0)))
    def leader_changes(self, deaf: float) -> None:
        self.world.change_leader(deaf)

    @rule(which=st.integers(0, 1))
    def watch_breaks(self, which: int) -> None:
        self.world.break_watch(self.world.coordinators[which])

    @rule(which=st.integers(0, 1), lossy=st.booleans(), seconds=st.sampled_from((0.2, 4.0)))
    def etcd_is_unsteady(self, which: int, lossy: bool, seconds: float) -> None:
        coordinator = self.world.coordinators[which]
        if lossy:
            coordinator.lossy = self.world.clockwork.now + seconds
        else:
            coordinator.away = self.world.clockwork.now + seconds

    @rule()
    def store_is_lost(self) -> None:
        self.world.lose_store()

    @invariant()
    def safe(self) -> None:
        if hasattr(self, "world"):
            self.world.check()

    def teardown(self) -> None:
        """Once nothing breaks any more, everything that waits is served, and whoever asks next."""
        if not hasattr(self, "world"):
            return
        self.world.heal()
        for model in MODELS:
            self.world.policy(model, None)
        self.world.run(SETTLE_S)
        settled(self.world)
        probe(self.world)


TestScheduler = SchedulerMachine.TestCase
TestScheduler.settings = settings(
    max_examples=80,
    stateful_step_count=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
