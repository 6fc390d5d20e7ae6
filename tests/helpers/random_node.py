"""Random operation sequences on one node with random kills, of engines and of the daemon: what may happen, and what
must agree afterwards. The node is the real one, in the test's process; engines are real processes; etcd is in memory.
"""

from __future__ import annotations

import os
import random
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path

from coordinator.core.model import Order
from coordinator.store.memory import MemoryEtcd
from native import maps
from native.daemon.options import DeviceOption, Options
from tests.helpers.brood import Brood
from tests.helpers.in_process import InProcess
from tests.helpers.leader import Leader
from tests.helpers.random_neighbours import CHUNKS, DEVICE, Engine, Neighbours

MIB = 1 << 20
CHUNK = 2 * MIB
HOST_RAM = 12 * MIB


class RandomNode(Neighbours):
    """One sequence. `said` is what happened, for the reader of a failure."""

    def __init__(self, folder: Path, brood: Brood, seed: int) -> None:
        super().__init__(random.Random(seed))
        self.said: list[str] = []
        options = Options(
            "n",
            (),
            folder / "s",
            folder,
            (DeviceOption("0", "host", CHUNKS * CHUNK),),
            HOST_RAM,
            view_grace=30.0,
            pages="memfd",
        )
        self._brood = brood
        self._etcd = MemoryEtcd()
        self._socket = options.socket
        self.place = InProcess(options, self._etcd.client())
        self.leader = Leader(self._etcd.client())
        self._fills = 0

    async def live(self, steps: int) -> None:
        await self.leader.elect()
        await self.place.start()
        try:
            for _ in range(steps):
                await self._step()
                await self._bury()
            await self.check()
            for engine in tuple(self.engines):
                await self._kill(engine)
            await self._bury()
            await self.check()
        finally:
            for engine in self.engines:
                await engine.puppet.kill()
            await self.place.kill()

    async def _step(self) -> None:
        if not self.engines or (len(self.engines) < 3 and self.random.random() < 0.3):
            await self._birth()
            return
        happening: Callable[[Engine], Awaitable[None]] = self.random.choices(
            [
                *(self._restore, self._offload, self._look, self._let_go, self._revoke, self._master, self._host),
                *(self._nonsense, self._kill, self._reclaim, self._restart),
                *(self._offer, self._join, self._part, self._leave_named, self._come_back),
            ],
            [8, 5, 5, 2, 2, 4, 2, 2, 1, 1, 2, 5, 6, 3, 3, 3],
        )[0]
        engine = self.random.choice(self.engines)
        self.said.append(f"{happening.__name__[1:]} {engine.fill}")
        await happening(engine)

    async def _birth(self) -> None:
        self._fills += 1
        spec = await self.leader.register(f"e{self._fills}", (DEVICE,))
        puppet = await self._brood.puppet(self._socket, spec.holder.engine, spec.holder.nonce)
        engine = Engine(self._fills, spec, puppet, self.random.random() < 0.7)
        await self._ask(engine, "hello")
        if engine.listens:
            await self._ask(engine, "listen", True)
        self.engines.append(engine)
        self.said.append(f"birth {engine.fill}, listens: {engine.listens}")

    async def _restore(self, engine: Engine) -> None:
        """With a crash of its process or of the daemon in the midst of it, sometimes."""
        count = self.random.randrange(1, CHUNKS // 2)
        fence = await self._begin(engine, Order.RESTORE)
        if count <= self._free:
            chunks = await self._ask(engine, "map", DEVICE, "weights", count, engine.fill)
            assert isinstance(chunks, list)
            engine.chunks |= dict.fromkeys(chunks, engine.fill)
        else:
            await self._denied(engine, "no_space", "map", DEVICE, "weights", count, engine.fill)
        if self.random.random() < 0.1:
            await self._kill(engine)
            return
        if self.random.random() < 0.1:
            await self._restart(engine)
        await self._ask(engine, "leave", DEVICE, fence.epoch, fence.revision)

    async def _offload(self, engine: Engine) -> None:
        """All or a part; whoever looks at it is asked to let go, or killed."""
        mine = self._own(engine)
        going = set(mine[: self.random.randrange(0, len(mine) + 1)])
        await self._revoke(engine)
        fence = await self._begin(engine, Order.OFFLOAD)
        for offer in [offer for offer in self.offers.values() if offer.owner is engine and going & set(offer.chunks)]:
            if not going.issuperset(offer.chunks):
                await self._denied(engine, "bad_request", "unmap_without_unmapping", DEVICE, sorted(going))
                going |= set(offer.chunks)
        if going:
            await self._ask(engine, "unmap", DEVICE, sorted(going))
        await self._given_up(engine, going)
        self._blind(engine, going)
        if self.random.random() < 0.1:
            await self._restart(engine)
        await self._ask(engine, "leave", DEVICE, fence.epoch, fence.revision)

    async def _look(self, engine: Engine) -> None:
        """At what another has."""
        owners = [other for other in self.engines if other is not engine and other.chunks]
        if not owners:
            return
        owner = self.random.choice(owners)
        chunks = list(owner.chunks)[: self.random.randrange(1, len(owner.chunks) + 1)]
        await self._ask(owner, "stats")  # hands back first, where the daemon was restarted
        view = await self._ask(owner, "offer_view", DEVICE, chunks, engine.spec.holder.engine)
        assert isinstance(view, int)
        seen = await self._ask(engine, "open_view", view)
        assert isinstance(seen, dict)
        assert list(seen.values()) == [owner.chunks[chunk] for chunk in chunks]
        engine.views[view] = owner
        owner.offered[view] = chunks

    async def _let_go(self, engine: Engine) -> None:
        for view in tuple(engine.views):
            await self._close_view(engine, view)

    async def _close_view(self, engine: Engine, view: int) -> None:
        await self._ask(engine, "close_view", view)
        engine.views.pop(view)

    async def _revoke(self, engine: Engine) -> None:
        for view in tuple(engine.offered):
            holders = [other for other in self.engines if view in other.views]
            patience = 5.0 if all(holder.listens for holder in holders) else 0.02
            await self._ask(engine, "revoke_view", view, patience)
            self._blind(engine, engine.offered.get(view, []))

    def _blind(self, owner: Engine, chunks: Iterable[int]) -> None:
        """Nobody looks at these any more: who listened has let go, who did not is dead and gets buried."""
        for view in [v for v, offered in owner.offered.items() if set(offered) & set(chunks)]:
            owner.offered.pop(view)
            for other in self.engines:
                if view in other.views and other.holder not in self.place.node.engines.doomed:
                    other.views.pop(view)

    async def _master(self, engine: Engine) -> None:
        digest = f"content {self.random.randrange(3)}"
        if digest in engine.masters:
            await self._ask(engine, "release_master", digest)
            engine.masters.discard(digest)
            return
        kind, value = await engine.puppet.call("make_or_open_master", digest, self.random.randrange(1, 3) * 2 * MIB)
        if kind == "done":
            engine.masters.add(digest)
        else:
            assert isinstance(value, list)
            assert value[0] == "no_space", value

    async def _host(self, engine: Engine) -> None:
        kind, value = await engine.puppet.call("report_host", self.random.randrange(0, 4) * MIB)
        assert kind == "done" or (isinstance(value, list) and value[0] == "no_space"), value

    async def _nonsense(self, engine: Engine) -> None:
        """Stale, made up, another's, without an operation."""
        await self.leader.closed(DEVICE)
        epoch = (await self.leader.until(DEVICE, lambda state: True)).epoch
        await self._denied(engine, "stale", "enter", DEVICE, "made up", 1, 5.0)
        await self._denied(engine, "stale", "enter", DEVICE, epoch, 0, 5.0)
        await self._denied(engine, "not_open", "map", DEVICE, "kv", 1, 0)
        await self._denied(engine, "not_found", "open_view", 4711)
        fence = await self._begin(engine, Order.RESTORE, 0)
        await self._denied(engine, "no_space", "map", DEVICE, "kv", 1, 0)
        for other in self.engines:
            if other is not engine and other.chunks:
                theirs = list(other.chunks)[:1]
                await self._denied(engine, "bad_request", "unmap_without_unmapping", DEVICE, theirs)
                await self._denied(engine, "bad_request", "offer_view", DEVICE, theirs, "")
                await self._denied(engine, "bad_request", "offer_share", DEVICE, "theirs", theirs)
        await self._ask(engine, "leave", DEVICE, fence.epoch, fence.revision)
        await self._denied(engine, "not_open", "open_share", DEVICE, "weights 0")

    async def _kill(self, engine: Engine) -> None:
        await engine.puppet.kill()
        self._forget(engine)
        for other in self.engines:
            for view in [view for view, owner in other.views.items() if owner is engine]:
                await self._close_view(other, view)
        await self._dead(engine)

    async def _dead(self, engine: Engine) -> None:
        """The daemon has found it dead; who shared its pages has inherited them."""
        while self.place.runs and self.place.node.engines.alive(engine.holder):
            await self.place.node.bell.wait()
        for offer in self.offers.values():
            if engine in offer.sharers:
                offer.sharers.remove(engine)
        await self._given_up(engine, tuple(engine.chunks))

    async def _reclaim(self, engine: Engine) -> None:
        await self.leader.closed(DEVICE)
        fence = await self.leader.reclaim(engine.spec)
        await engine.puppet.ended()
        self._forget(engine)
        for other in self.engines:
            for view in [view for view, owner in other.views.items() if owner is engine]:
                await self._close_view(other, view)
        await self.leader.closed(DEVICE, fence)
        await self._dead(engine)

    async def _restart(self, engine: Engine) -> None:
        """kill -9 of the daemon, sometimes with an engine that dies meanwhile. Whom it has ended before, the next one
        finds dead."""
        doomed = self._doomed()
        await self.place.kill()
        victim = self.random.choice(self.engines)
        if victim is not engine and self.random.random() < 0.2:
            await victim.puppet.kill()
        await self.place.start()
        if victim is not engine and victim.puppet.dead:
            await self._kill(victim)
        for one in doomed:
            await self._ended(one)
        for one in self.engines:
            one.offered.clear()  # called in
            if one.listens:
                one.views.clear()

    def _forget(self, engine: Engine) -> None:
        if engine in self.engines:
            self.engines.remove(engine)
        for other in self.engines:
            if other.listens:
                other.views = {view: owner for view, owner in other.views.items() if owner is not engine}

    async def _bury(self) -> None:
        """Whom the daemon ended: only who looked at what it had to let go of."""
        node = self.place.node
        while True:
            for engine in self._doomed():
                await self._ended(engine)
            if not self._unsettled():
                return
            await node.bell.wait()

    def _doomed(self) -> list[Engine]:
        """Whom the daemon has ended, and this test not yet buried."""
        return [engine for engine in self.engines if engine.holder in self.place.node.engines.doomed]

    async def _ended(self, engine: Engine) -> None:
        assert engine.views, f"{engine.fill} was ended for nothing"
        await engine.puppet.ended()
        self._forget(engine)
        await self._dead(engine)

    def _unsettled(self) -> bool:
        """Pages of the dead are looked at, or somebody is about to do what it was asked."""
        node = self.place.node
        listening = {engine.holder for engine in self.engines if engine.listens}
        numbers = {member.number for member in node.engines if member.holder in listening}
        return bool(node._remains) or any(view.revoked and view.holders & numbers for view in node.views)

    async def check(self) -> None:
        """Ledger, journal, driver, /proc and what lies in the pages agree."""
        node = self.place.node
        device = node.devices["0"]
        for engine in self.engines:
            await self._ask(engine, "stats")
        holders = {engine.holder for engine in self.engines}
        while device.pool.debt or any(owner.holder not in holders for owner in device.pool.owners):
            await node.bell.wait()
        missed = {c for offer in self.offers.values() if not self._known(offer) for c in offer.chunks}
        assert device.pool.foreign == len(missed) * CHUNK
        assert device.pool.free + device.pool.charged == CHUNKS * CHUNK
        for descriptor in device._descriptors.values():
            assert os.fstat(descriptor).st_blocks * 512 == CHUNK
        assert len(device._descriptors) == CHUNKS - len(missed)
        members = {member.holder: member for member in node.engines}
        for engine in self.engines:
            owner = members[engine.holder].owner
            held = {first.first + i for first in device.pool.extents_of(owner) for i in range(first.count)}
            assert held == set(engine.chunks)
            joined = {c: fill for o in self.offers.values() if engine in o.sharers for c, fill in o.chunks.items()}
            fills = {str(chunk): fill for chunk, fill in (engine.chunks | joined).items()}
            assert await self._ask(engine, "fills") == fills
            viewed = [chunk for view in node.views if owner.process in view.holders for chunk in view.chunks]
            assert {view.id for view in node.views if owner.process in view.holders} == set(engine.views)
            wanted: dict[object, int] = {}
            for chunk in [*held, *joined, *viewed]:
                wanted[device.files[chunk]] = wanted.get(device.files[chunk], 0) + CHUNK
            found = {f: size for f, size in maps.mapped(engine.puppet.pid).items() if f in device.files.values()}
            assert found == wanted
        assert {
            share.digest: (share.owner.holder, share.chunks, {sharer.holder for sharer in share.sharers})
            for share in node.shares
        } == {
            digest: (offer.owner.holder, tuple(offer.chunks), {sharer.holder for sharer in offer.sharers})
            for digest, offer in self.offers.items()
        }
        assert node.masters.bytes + node.masters.saved_kv <= HOST_RAM
        await node.keeper.durable()
        assert self.place.written() == self.place.now()
