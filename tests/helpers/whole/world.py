"""The whole system in virtual time: real coordinators, daemons and agents on simulated machines, networks and etcd.

Everything random comes from one seed. Invariants are judged where they could be broken: at every transaction that takes
effect, every page that is made or mapped, every entry, every forward pass, every end of a request.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Any

import msgspec

from coordinator.core.model import Epoch, Order, Policy, Seat, Spec
from coordinator.core.settings import Limits, Settings
from coordinator.store import keys
from coordinator.store.base import Delete, Op, Put
from coordinator.store.codec import decode, encode
from tests.helpers.whole.coordinator import SimCoordinator
from tests.helpers.whole.daemon import CHUNK, SimDaemon
from tests.helpers.whole.engine import Kind, SimEngine
from tests.helpers.whole.loop import NOBODY, Deadlock, Proc, VirtualLoop
from tests.helpers.whole.machine import Device, Machine, Violated
from tests.helpers.whole.network import SimEtcd, SimStore

LIMITS = Limits(
    restore_s=6.0, offload_s=6.0, startup_s=20.0, reclaim_s=6.0, lost_s=4.0, abandoned_s=15.0, startup_delay_s=5.0
)
SETTINGS = Settings(keep_alive=20.0, min_residency=0.5, max_wait=60.0)
LATE_S, SOON_S = 8.0, 0.5
"""A policy that stands for that long is known to every leader; where nothing breaks any more, sooner."""
OVERDUE_S = 5.0
"""What finding out and reclaiming take beyond an order's limit, where nothing breaks any more."""
_SEATS = keys.ROOT + "seats/"
_LAGS = (0.0, 0.0, 0.001, 0.01)


class Request:
    """A client's request; `ended` says how."""

    def __init__(self, id_: str, model: str, born: float, work: float, patience: float) -> None:
        self.id = id_
        self.model = model
        self.born = born
        self.work = work
        self.patience = patience
        self.ended = ""
        self.ended_at = 0.0


class World:
    """`nodes`: chunks by device id by node. Make it and use it inside `staged`, within its own loop."""

    def __init__(
        self,
        seed: int,
        nodes: Mapping[str, Mapping[str, int]],
        kinds: Sequence[Kind],
        models: Mapping[str, Settings],
    ) -> None:
        self.seed = seed
        self.rng = Random(seed)
        self.loop = VirtualLoop(self.rng)
        self.limits = LIMITS
        self.settings = SETTINGS
        self.models = dict(models)
        self.kinds = list(kinds)
        self.nodes = nodes
        self.story: list[str] = []
        self.wrong: str = ""
        self.events = self.faults = self.switches = self.orders = 0
        self.over = False
        self.rude: list[str] = []
        """Who was reclaimed for an order that was given when nothing broke any more."""
        self.healed = 0
        """Revision from which on no fault is left; nobody dies of one any more."""
        self.healed_at = 0.0
        self.procs: list[Proc] = []
        self.rough = True
        """Connections to daemons break now and then."""
        self.wall_ahead = 0.0
        self.requests: list[Request] = []
        self.lives: list[SimEngine] = []
        self.engines: dict[str, SimEngine] = {}
        self.pins: dict[str, float] = {}
        self.entries: dict[tuple[str, str], tuple[int, str]] = {}
        self.machine = Machine(self.violate, self._kill_pid)
        self.failed: asyncio.Event

    def wall(self) -> float:
        """What a wall clock shows; it is set by hand now and then."""
        return 1.7e9 + self.loop.time() + self.wall_ahead

    async def begin(self) -> None:
        """Power on."""
        self.failed = asyncio.Event()
        self.etcd = SimEtcd(self.rng, self._judge)
        for node, devices in self.nodes.items():
            for id_, chunks in devices.items():
                self.machine.devices[f"{node}/{id_}"] = Device(f"{node}/{id_}", chunks * CHUNK, CHUNK)
        self.daemons = {node: SimDaemon(self, node, dict(devices)) for node, devices in self.nodes.items()}
        for daemon in self.daemons.values():
            daemon.start()
        for kind in self.kinds:
            self.spawn(kind)
        self.coordinators = [SimCoordinator(self, f"c{number}") for number in range(2)]

    def store(self, proc: Proc, die: Callable[[], None]) -> SimStore:
        self.procs.append(proc)
        return SimStore(self.etcd, proc, self.rng, lambda: None if self.healed else die(), lambda: self.over)

    def spawn(self, kind: Kind) -> SimEngine:
        engine = SimEngine(self, kind, len(self.lives) + 1)
        self.lives.append(engine)
        self.engines[kind.name] = engine
        return engine

    def later(self, seconds: float, act: Callable[..., object], *args: object) -> None:
        """The world does it, whoever asks."""
        self.loop.call_later(seconds, act, *args, context=NOBODY)

    def lag(self) -> float:
        return _LAGS[int(self.rng.random() * len(_LAGS))]

    def cuts(self) -> bool:
        """Whether a connection to a daemon breaks now, its answer unheard."""
        return self.rough and self.rng.random() < 0.01

    def say(self, text: str) -> None:
        self.story.append(f"{self.loop.time():8.3f} {text}")

    def violate(self, what: str) -> None:
        """The first thing that went wrong ends the history."""
        if not self.wrong and not self.over:
            self.wrong = what
            self.say(f"VIOLATED {what}")
            self.failed.set()

    # ---- processes

    def crash(self, engine: SimEngine, restart_s: float = 1.0) -> None:
        """The process dies; whoever supervises starts it anew."""
        if not engine.alive or self.over:
            return
        self.say(f"{engine.id} dies in {engine.phase}")
        engine.proc.dead = True
        del self.machine.living[engine.pid]
        engine.bury()
        for fd in self.machine.watchers(engine.pid):
            self.later(self.rng.uniform(0.0, 0.05), self.loop.fire, fd)
        self.later(restart_s, self._respawn, engine)

    def _respawn(self, engine: SimEngine) -> None:
        if self.engines[engine.id] is engine and not self.over:
            self.spawn(engine.kind)

    def _kill_pid(self, pid: int) -> None:
        for engine in self.lives:
            if engine.pid == pid and engine.alive:
                self.say(f"the daemon kills {engine.id}")
                self.crash(engine)

    # ---- clients

    def request(self, model: str, work: float, gateway: int, patience: float) -> Request:
        request = Request(f"r{len(self.requests)}", model, self.loop.time(), work, patience)
        self.requests.append(request)
        self.coordinators[gateway % len(self.coordinators)].request(request)
        return request

    def ended(self, request: Request, how: str) -> None:
        if self.over:
            return
        if request.ended:
            self.violate(f"I2: a request for {request.model} ended twice: {request.ended}, then {how}")
        request.ended, request.ended_at = how, self.loop.time()

    def policy(self, model: str, policy: Policy | None) -> None:
        """By an operator."""
        self.pins.pop(model, None)
        if policy is not None and policy.pin:
            self.pins[model] = self.loop.time()
        key = keys.policy(model)
        self.etcd.txn([], [Delete(key) if policy is None else Put(key, encode(policy))])

    # ---- judges

    def entered(self, engine: SimEngine, device: str, epoch: str, revision: int) -> None:
        """I1: fences that are entered on a device increase."""
        last, who = self.entries.get((device, epoch), (0, ""))
        if revision < last or (revision == last and who != engine.nonce):
            self.violate(f"I1: {engine.id} entered {device} under {revision}, after {last}")
        self.entries[device, epoch] = (revision, engine.nonce)

    def works(self, engine: SimEngine) -> None:
        """I1: at most one engine changes a device's memory."""
        for other in self.engines.values():
            common = set(engine.kind.devices) & set(other.kind.devices)
            if other is not engine and other.alive and other.working and common:
                self.violate(f"I1: {engine.id} and {other.id} change {min(common)} at once")

    def _judge(self, ops: Sequence[Op]) -> None:
        """A transaction is about to take effect... or just did; nobody has heard of it yet."""
        puts = [op for op in ops if isinstance(op, Put) and op.key.startswith(_SEATS)]
        if not puts:
            return
        self.orders += 1
        seat = decode(Seat, puts[0].value)
        devices = {op.key.removeprefix(_SEATS) for op in puts}
        self.switches += seat.order is Order.RESTORE
        self.say(f"{seat.order} {seat.holder.engine} at {self.etcd.mvcc.revision}")
        self._judge_group(seat, devices, ops)
        if seat.order is Order.OFFLOAD:
            self._judge_victim(seat, ops)
        for device in devices:
            self._judge_closed(seat, device)

    def _judge_group(self, seat: Seat, devices: set[str], ops: Sequence[Op]) -> None:
        kind = next((each for each in self.kinds if each.name == seat.holder.engine), None)
        if kind is not None and seat.order is not Order.RECLAIM and set(kind.devices) != devices:
            self.violate(f"a group of {sorted(kind.devices)} is granted {sorted(devices)} alone")

    def _judge_victim(self, seat: Seat, ops: Sequence[Op]) -> None:
        """What was sent before healing has arrived after `LATE_S`."""
        kind = next(each for each in self.kinds if each.name == seat.holder.engine)
        asked = any(b"asked for by" in op.value or b"drained" in op.value for op in ops if isinstance(op, Put))
        since, now = self.pins.get(kind.model), self.loop.time()
        heard_s = SOON_S if 0 < self.healed_at < now - LATE_S else LATE_S
        if since is not None and now - since > heard_s and not asked:
            self.violate(f"{kind.name} is pinned and must leave")

    def _judge_closed(self, seat: Seat, device: str) -> None:
        """PROTOCOL rules 3 and 10, by what the daemon has on disk and not by anybody's view."""
        before = self.etcd_seats.get(device)
        self.etcd_seats[device] = (seat, self.etcd.mvcc.revision, self.loop.time())
        if before is None:
            return
        node, _, id_ = device.partition("/")
        ledger = self.daemons[node].journal.last.devices.get(id_)
        row = self.etcd.mvcc.get(keys.EPOCH)
        epoch = decode(Epoch, row.value).id if row is not None else ""
        closed = ledger.record.closed if ledger is not None and ledger.record.epoch == epoch else 0
        own = seat.order is Order.RECLAIM and before[0].holder == seat.holder
        if own and 0 < self.healed < before[1] and before[0].order is not Order.RECLAIM:
            self.rude.append(f"{seat.holder.engine} for its order of revision {before[1]}")
        if closed < before[1] and not own:
            self.violate(f"granted on {device} over an unclosed seat {before[1]} (closed {closed})")
        if own:
            self._judge_reclaim(node, id_, before[1])

    def _judge_reclaim(self, node: str, id_: str, revision: int) -> None:
        """PROTOCOL rule 8: a seat that nobody can enter any more is closed by the daemon that sees so; nobody has to
        be reclaimed for it."""
        daemon = self.daemons[node].node
        fences = daemon.devices[id_].fences if daemon is not None else None
        if fences is None or fences.view is None or not fences.publishable or fences.record.open is not None:
            return
        token = fences.view.token
        vacant = token is None or token.revision != revision
        if fences.view.seat is not None and fences.view.seat.revision == revision > fences.record.closed and vacant:
            self.violate(f"{node}/{id_}: seat {revision} was never entered, its token is gone, and it is not closed")

    @property
    def etcd_seats(self) -> dict[str, tuple[Seat, int, float]]:
        """Seats as they stood before the transaction under judgement, in this life of the store: their revisions, and
        since when they stand."""
        life = id(self.etcd.mvcc)
        if self.__dict__.get("_seats_of") != life:
            self.__dict__["_seats_of"], self.__dict__["_seats"] = life, {}
        return self.__dict__["_seats"]  # type: ignore[no-any-return]

    def verdict(self) -> list[str]:
        """After healing and time: everything that is not as it should be (I5, I6)."""
        wrong = [f"a request for {each.model} waits" for each in self.requests if not each.ended]
        if not any(coordinator.leading for coordinator in self.coordinators):
            wrong.append("nobody leads")
        for name, daemon in self.daemons.items():
            wrong += [f"daemon {name} is away"] if daemon.node is None else self._of_node(name, daemon)
        for engine in self.engines.values():
            if not engine.alive or engine.phase not in ("resident", "offloaded"):
                wrong.append(f"{engine.id} rests in {engine.phase}")
        for coordinator in self.coordinators:
            if coordinator.gateway is None or any(coordinator.gateway.demand.values()):
                wrong.append(f"demand stays at {coordinator.id}")
        return wrong

    def overdue(self) -> list[str]:
        """PROTOCOL rule 10: who does not answer within the limit of its order, or twice that once it has told what came
        of it, is reclaimed."""
        late = []
        for device, (seat, revision, at) in self.etcd_seats.items():
            over = max(at, self.healed_at) + 2 * seat.limit_s + OVERDUE_S < self.loop.time()
            if over and seat.order is not Order.RECLAIM and not self._closed(device, revision):
                late.append(f"{seat.holder.engine} has not answered {revision} on {device} and is not reclaimed")
        return late

    def _closed(self, device: str, revision: int) -> bool:
        node, _, id_ = device.partition("/")
        daemon = self.daemons[node].node
        return daemon is None or daemon.devices[id_].fences.record.closed >= revision

    def _of_node(self, name: str, daemon: SimDaemon) -> list[str]:
        assert daemon.node is not None
        wrong = []
        for id_, device in daemon.node.devices.items():
            if device.fences.record.open is not None:
                wrong.append(f"{device.fences.record.open.holder} never left {name}/{id_}")
            seat = self.etcd.mvcc.get(keys.seat(f"{name}/{id_}"))
            if seat is not None and device.fences.record.closed < seat.mod_revision:
                wrong.append(f"seat {seat.mod_revision} of {name}/{id_} is not closed")
            mapped = sum(
                any(not p.dead for p in c.mapped.values()) for c in self.machine.devices[f"{name}/{id_}"].chunks
            )
            if device.pool.charged != mapped * CHUNK:
                wrong.append(f"I6: {device.pool.charged // CHUNK} pages of {name}/{id_} are charged, {mapped} mapped")
        return wrong

    # ---- the run

    def live(self, script: Callable[[World], Any]) -> None:
        """Run `script(self)`, an async function, and put everything away. Raises Violated."""
        loop = self.loop
        loop.set_exception_handler(
            lambda loop, told: self.violate(f"unheard: {told.get('exception') or told['message']!r}")
        )
        collected = gc.isenabled()
        gc.disable()
        try:
            loop.run_until_complete(self._until_failed(script))
        except Deadlock as dead:
            self.violate(f"I5: {dead}")
        finally:
            self._away()
            if collected:
                gc.enable()
        if self.wrong:
            raise Violated(self.wrong)

    async def _until_failed(self, script: Callable[[World], Any]) -> None:
        await self.begin()
        main = asyncio.ensure_future(script(self))
        failed = asyncio.ensure_future(self.failed.wait())
        await asyncio.wait((main, failed), return_when=asyncio.FIRST_COMPLETED)
        failed.cancel()
        if main.done():
            main.result()
        main.cancel()

    def _away(self) -> None:
        """Nothing counts any more, no call of anybody reaches anybody, nobody dies or is started."""
        self.over = True
        left = self.loop.put_away(self.procs)
        if left and not self.wrong:
            self.wrong = f"I6: {len(left)} tasks do not end when they are cancelled: {left[0]}"

    def specs(self) -> dict[str, Spec]:
        """Engines that stand in etcd."""
        rows = self.etcd.mvcc.list(keys.ROOT + "engines/").kvs
        return {kv.key: msgspec.json.decode(kv.value, type=Spec) for kv in rows if kv.key.endswith("/spec")}
