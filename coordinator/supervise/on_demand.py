"""Engines that run when the leader says so: each is told to it under a key of the supervisor's, and kept by its orders.

An order counts where it names this run of the supervisor. Where etcd lost its data, and the orders with it, what runs
goes on running.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from coordinator.config import Config
from coordinator.config_replicas import is_replicated
from coordinator.core.process import Life, Process, ProcessOrder, Wish
from coordinator.errors import Ambiguous, StoreError, StoreUnavailable
from coordinator.picture import Mirror, Picture
from coordinator.placement import engines, needs
from coordinator.store import keys
from coordinator.store.base import Delete, Op, Put, Store
from coordinator.store.codec import encode
from coordinator.store.session import Session, open_session
from coordinator.supervise import group
from coordinator.supervise.child import first
from coordinator.supervise.keeper import Keeper, Program, State
from coordinator.weights import weight_bytes

log = logging.getLogger(__name__)

PROCESS_BYTES = 1536 << 20
"""What each rank of an engine is taken to need of host memory beside masters, until it was measured (1.4 GB was, with
vLLM on CPU)."""
RETRY_S = 0.5


def told(config: Config, name: str, keeper: str) -> Process:
    """The first word about an engine. Raises WeightsError where its folder holds no model."""
    engine = engines(config)[name]
    model, ranks = engine.model, len(engine.devices)
    share = -(-weight_bytes(Path(model.path)) // ranks)
    weights, _ = needs(config.device(engine.devices[0]), share, 0)
    return Process(
        model=engine.name,
        devices=tuple(f"{config.node}/{device}" for device in engine.devices),
        keeper=keeper,
        life=Life.STOPPED,
        lazy=True,
        together=is_replicated(name, config.models),
        bytes=PROCESS_BYTES * ranks,
        weights=weights * ranks,
        stop_after=None if model.stop_after is None else float(model.stop_after),
    )


class OnDemand:
    """One of them. `keep` starts a keeper for its program, `release` is told when that is over, `moved` that `process`
    has changed."""

    def __init__(
        self,
        program: Program,
        process: Process,
        mirror: Mirror,
        keep: Callable[[Program], Keeper],
        release: Callable[[Keeper], None],
        moved: Callable[[], None],
    ) -> None:
        self.program = program
        self.process = process
        self.keeper: Keeper | None = None
        self._mirror = mirror
        self._keep = keep
        self._release = release
        self._moved = moved

    async def run(self) -> None:
        """Until cancelled; a keeper that is there then is the caller's to stop."""
        while True:
            await self._mirror.until(lambda picture: self._runs(picture) > self.process.obeyed)
            await self._live(self._runs(self._mirror.picture))

    def heard(self, keeper: Keeper) -> None:
        """Its keeper's state has changed."""
        if keeper is not self.keeper or self.process.life is Life.STOPPING:
            return
        if keeper.state is State.READY:
            child = keeper.child
            self._say(Life.RUNNING, bytes=anonymous_bytes(child.pid) if child is not None else 0)
        elif keeper.state in (State.WAITING, State.STARTING, State.BACKING_OFF):
            self._say(Life.STARTING)

    async def _live(self, revision: int) -> None:
        """One time of running, from the order to its end."""
        self._say(Life.STARTING, obeyed=revision, error="")
        keeper = self.keeper = self._keep(self.program)
        await first((keeper.ended.wait(), self._mirror.until(lambda picture: self._stops(picture) > revision)))
        if keeper.ended.is_set():
            error = f"{self.program.name} ended and is not started again; its log says why"
            self._over(keeper, Life.FAILED, error=error)
            return
        self._say(Life.STOPPING)
        await keeper.stop(asyncio.Event())
        self._over(keeper, Life.STOPPED, obeyed=self._stops(self._mirror.picture))

    def _over(self, keeper: Keeper, life: Life, **change: object) -> None:
        self.keeper = None
        self._release(keeper)
        self._say(life, **change)

    def _runs(self, picture: Picture) -> int:
        """Revision of the order that it may run (also while it ends what it has); 0: there is none."""
        return self._order(picture, Wish.RUN)

    def _stops(self, picture: Picture) -> int:
        return self._order(picture, Wish.STOP)

    def _order(self, picture: Picture, wish: Wish) -> int:
        order = picture.of(ProcessOrder).get(self.program.name)
        if order is None or order.keeper != self.process.keeper or order.wish is not wish:
            return 0
        return picture.written(ProcessOrder, self.program.name)

    def _say(self, life: Life, **change: object) -> None:
        if change.get("bytes"):
            change["measured"] = True
        else:
            change.pop("bytes", None)
        self.process = msgspec.structs.replace(self.process, life=life, **change)
        self._moved()


class Roll:
    """Keeps in etcd, under a lease of its own, what `processes` says of a node's engines."""

    def __init__(self, store: Store, node: str, processes: Callable[[], Mapping[str, Process]]) -> None:
        self._store = store
        self._node = node
        self._processes = processes
        self._moved = asyncio.Event()

    def moved(self) -> None:
        """Something of it has changed."""
        self._moved.set()

    async def run(self) -> None:
        """Session after session, until cancelled."""
        while True:
            try:
                async with open_session(self._store) as session:
                    await self._stand(session)
            except StoreError as error:
                log.warning("the leader does not hear of this node's processes: %s", error)
            await asyncio.sleep(RETRY_S)

    async def _stand(self, session: Session) -> None:
        """Until the session is lost. Raises `StoreError`."""
        published: dict[str, Process] = {}
        while session.alive:
            self._moved.clear()
            now = dict(self._processes())
            ops: list[Op] = [
                Put(keys.process(self._node, engine), encode(process), session.lease)
                for engine, process in now.items()
                if published.get(engine) != process
            ]
            ops += [Delete(keys.process(self._node, engine)) for engine in published if engine not in now]
            try:
                if ops:
                    await self._store.txn([], ops)
                published = now
            except (StoreUnavailable, Ambiguous) as error:
                log.debug("told again: %s", error)
                await asyncio.sleep(RETRY_S)
                continue
            await first((self._moved.wait(), session.lost.wait()))


def anonymous_bytes(leader: int) -> int:
    """Private memory of a process group, from /proc (proc(5), RssAnon): without device pages and masters, which are
    files. 0: it cannot be read."""
    total = 0
    for pid in group.members(leader):
        try:
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon:"))
    return total
