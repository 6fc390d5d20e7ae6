"""One rank's part in Netloader: fetches its weights when it starts, and serves them ever after.

Lives in the worker process, on side threads next to the model runner. It serves from the device pages while they are
there and from the host master while the engine sleeps; a switch lets a block that is on its way out first.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from coordinator.core.model import Seed
from engine_patch import strangers
from engine_patch.checkpoints import Checkpoint, LazyShelf, Room
from engine_patch.desk import Desk
from engine_patch.loader_options import Options, write_address
from engine_patch.seed_news import SeedNews
from engine_patch.strangers import as_peer
from engine_patch.tensors import Table
from engine_patch.together import Near, hold, in_pages
from native import _native
from native.link import DaemonError
from transfer.errors import PeerViolation, TransferError
from transfer.netloader import ways, wire
from transfer.netloader.client import Client, Streamed
from transfer.netloader.guard import Guard, Switching
from transfer.netloader.identity import Identity
from transfer.netloader.manifest import Grid, Manifest, manifest
from transfer.netloader.plan import Peer
from transfer.netloader.server import Server
from transfer.netloader.shelf import Shelf
from transfer.netloader.source import Locate, Source
from transfer.netloader.ways import Loan
from transfer.netloader.work import Work
from transfer.transports.channel import Channel
from transfer.transports.deadline import Deadline
from transfer.transports.dial import dial
from transfer.transports.listener import Listener
from transfer.transports.pace import SharedPace
from transfer.transports.trust import Trust

log = logging.getLogger("vllm.vnpu.netloader")

WITHDRAW_S = 2.0
"""Longest that an engine's own word to etcd may take to come back."""
BUSY_S = 0.25
"""An engine whose last step is longer ago has no request that a stream could slow down."""


class Streaming:
    """See the module. `fetch` and `serve` are called by the worker's one thread, in this order."""

    def __init__(
        self,
        engine: str,
        rank: int,
        options: Options,
        desk: Desk,
        trust: Trust,
        host: str,
        cpus: Sequence[int] = (),
        guard: Guard | None = None,
        locate: Locate | None = None,
        near: Near | None = None,
        checkpoint: Checkpoint | None = None,
        device: str = "cpu",
    ) -> None:
        """Listen. `host`: the address that others reach; `cpus`: processors the threads run on; `guard` and `locate`
        as in `Source`; `near`: how memory is shared on this machine, None: it is not. `checkpoint`: what these weights
        are made from. `device`: of this rank's tensors, as torch names it.

        A port that is taken costs the serving, not the engine.
        """
        self.options = options
        self._engine = engine
        self._rank = rank
        self._desk = desk
        self._trust = trust
        self._host = host
        self._cpus = tuple(cpus)
        self._shelf = Shelf()
        self._checkpoint = checkpoint
        self._files = LazyShelf(checkpoint) if checkpoint else None
        self._guard = guard or Guard()
        self._locate = locate
        self._device = device
        self._near = near if options.transport == "auto" else None
        self._machine = self._near.machine if self._near else ""
        self._plain: set[str] = set()
        """Sources with whom no other way than TCP could be agreed on."""
        self._pace = SharedPace(self._limit)
        self._computing = False
        self._stepped = 0.0
        self._addresses: tuple[int, ...] = ()
        self._fetching: Client | None = None
        self._work: Work | None = None
        self._held: Manifest | None = None
        """Of what will lie in the pages of another engine."""
        self._fingerprint = ""
        self._seed: Seed | None = None
        self._telling = threading.Lock()
        self._news = SeedNews(desk, rank, lambda: (self._fingerprint, self._now()))
        self._listener = self._listen()
        self._news.start()

    def _listen(self) -> Listener | None:
        port = self.options.listen_port + self._rank if self.options.listen_port else 0
        serve = Server(self._shelf, self._lend, self._files, self._device, self._together).serve
        try:
            listener = Listener(
                self._host, port, self._trust, wire.SERVICE, serve,
                pace=self._pace, max_message=wire.MAX_MESSAGE, cpus=self._cpus,
            )  # fmt: skip
        except TransferError as error:
            log.warning("rank %d serves no weights: %s", self._rank, error)
            return None
        if self.options.output_prefix:
            write_address(Path(f"{self.options.output_prefix}{self._rank}.txt"), self._host, listener.port)
        return listener

    def _lend(self, machine: str) -> Loan | None:
        """To a client there."""
        if self._near is None or machine != self._machine:
            return None
        try:
            return self._near.lend()
        except DaemonError as error:
            log.warning("nothing is lent: %s", error)
            return None

    def _together(self, machine: str, device: str) -> str:
        """With an engine that starts there."""
        if self._near is None or self._near.together is None or machine != self._machine:
            return ""
        return self._near.together.offer(device)

    def _limit(self) -> float:
        """Bytes a second that clients get together."""
        busy = self._computing or time.monotonic() - self._stepped < BUSY_S
        return self.options.rate_limit if busy else 0.0

    @contextmanager
    def stepping(self) -> Iterator[None]:
        """Within it the engine computes a step, however long that is: it has requests."""
        self._computing = True
        try:
            yield
        finally:
            self._stepped = time.monotonic()
            self._computing = False

    # ---- fetching

    def known(self, family: str) -> bool:
        """Whether anybody has, or will have, weights of this family."""
        if self.options.source:
            return bool(self.options.sources(self._rank))
        return any(one.engine != self._engine and one.seed.port for one in self._desk.find(family=family))

    def known_checkpoint(self) -> bool:
        """Whether anybody serves the checkpoint's own tensors."""
        if self._checkpoint is None or self.options.source:
            return self._checkpoint is not None and bool(self.options.sources(self._rank))
        found = self._desk.find(checkpoint=self._checkpoint.identity.fingerprint)
        return any(one.engine != self._engine and one.seed.port and one.seed.whole for one in found)

    def mismatches(self, identity: Identity) -> list[str]:
        """What keeps engines of this model from being sources, as one or two of them say. Nothing where sources are
        named: those are asked in any case."""
        if self.options.source:
            return []
        checkpoint = self._checkpoint.identity.fingerprint if self._checkpoint else ""
        try:
            found = strangers.relatives(self._desk, self._engine, self._rank, identity, checkpoint)
        except TransferError as error:
            log.warning("the directory cannot be read: %s", error)
            return []
        return strangers.mismatches(found, identity, self._trust)

    def fetch_checkpoint(self, room: Room, limit_s: float) -> Streamed:
        """The checkpoint's own tensors, into `room`; they are not passed on. Before the first one comes a source has to
        read its files.

        Raises:
            TransferError: why not.
        """
        if self._checkpoint is None:
            raise TransferError("it is not known which checkpoint this is")
        identity, since = self._checkpoint.identity, time.time()
        self._fingerprint = identity.fingerprint
        self._seed = Seed(host=self._host, port=0, family=identity.fingerprint, rank=self._rank, since=since)

        def began(whole: Manifest, work: Work) -> None:
            room.make(whole)
            self._work = work
            self._publish(total=whole.size)

        def directory() -> list[Peer]:
            peers = self._peers(checkpoint=identity.fingerprint)
            return [msgspec.structs.replace(peer, machine="") for peer in peers if peer.whole]

        me = Peer(name="me", host=self._host, port=0, ticket=(since, self._engine), whole=False)
        self._fetching = client = Client(me, identity, room, directory, self._dial, began, first_s=limit_s)
        try:
            streamed = client.run(limit_s)
        finally:
            self._fetching, self._work = None, None
            self._publish(have=0, source="")
        return streamed

    def fetch(self, identity: Identity, table: Table, limit_s: float) -> Streamed:
        """Everything in `table`, from whoever has it; passes on what it has meanwhile. Where another engine's pages are
        held for this one, only what lies elsewhere is fetched, and nothing is passed on before `serve`.

        Raises:
            TransferError: why not. The memory holds nothing of use then, and nobody reads it any more.
        """
        since = time.time()
        self._begin(identity, table, since)
        me = Peer(name="me", host=self._host, port=0, ticket=(since, self._engine), whole=False, machine=self._machine)
        if self._near is not None:
            self._held = hold(self._near, identity, self._peers(identity.fingerprint), self._connect)
        client = Client(
            me, identity, table.addresses, lambda: self._peers(identity.fingerprint), self._dial, self._began,
            agree=self._agree,
        )  # fmt: skip
        self._fetching = client
        try:
            streamed = client.run(limit_s)
        except TransferError:
            self._give_up()
            raise
        finally:
            self._fetching = None
        if self._held is None:
            self._publish(have=streamed.manifest.size, source="")
        return streamed

    def fetch_again(self, identity: Identity, addresses: Sequence[int], limit_s: float) -> Streamed:
        """Weights that were loaded here once and whose bytes are gone, from an engine that has all of them. Nobody gets
        them from here meanwhile.

        Raises:
            TransferError: why not. The memory holds nothing of use then, and nobody writes to it any more.
        """
        me = Peer(name="me", host=self._host, port=0, ticket=(0.0, self._engine), whole=False, machine=self._machine)

        def directory() -> list[Peer]:
            return [peer for peer in self._peers(identity.fingerprint) if peer.whole]

        return Client(me, identity, addresses, directory, self._dial, agree=self._agree).run(limit_s)

    def elsewhere(self, fingerprint: str) -> bool:
        """Whether another engine that runs has all of these weights. Asked once this one's own withdrawal has come
        back from etcd: of two that leave at once the later sees that the other has left. False for sources that a
        configuration names, since nobody says that they run."""
        if self.options.sources(self._rank) or not self._withdrawn(fingerprint):
            return False
        return any(peer.whole for peer in self._peers(fingerprint))

    def _withdrawn(self, fingerprint: str) -> bool:
        """Whether all others can see by now that nothing is served here; waits for `WITHDRAW_S` at most."""
        until = time.monotonic() + WITHDRAW_S
        while time.monotonic() < until:
            try:
                found = self._desk.find(fingerprint=fingerprint)
            except TransferError:
                return False
            if any(one.engine == self._engine and not one.seed.port for one in found):
                return True
            time.sleep(WITHDRAW_S / 100)
        return False

    def _begin(self, identity: Identity, table: Table, since: float) -> None:
        self._addresses = table.addresses
        self._fingerprint = identity.fingerprint
        self._seed = Seed(
            host=self._host,
            port=self._listener.port if self._listener else 0,
            family=identity.family,
            rank=self._rank,
            since=since,
            total=Grid(table.extents).size,
            machine=self._machine,
            checkpoint=self._checkpoint.identity.fingerprint if self._checkpoint else "",
            kin=identity.kin,
        )
        self._news.changed()

    def _peers(self, fingerprint: str = "", checkpoint: str = "") -> list[Peer]:
        static = self.options.sources(self._rank)
        if static:
            return [Peer(name=f"{host}:{port}", host=host, port=port) for host, port in static]
        try:
            found = self._desk.find(fingerprint=fingerprint, checkpoint=checkpoint)
        except TransferError as error:
            log.warning("the directory cannot be read: %s", error)
            return []
        return [as_peer(one) for one in found if one.engine != self._engine and one.seed.port]

    def _dial(self, peer: Peer, deadline: Deadline) -> Channel:
        if self._cpus:
            os.sched_setaffinity(0, self._cpus)  # of the thread that receives
        return self._connect(peer, deadline)

    def _connect(self, peer: Peer, deadline: Deadline) -> Channel:
        return dial(peer.host, peer.port, self._trust, wire.SERVICE, deadline)

    def _agree(self, peer: Peer, channel: Channel) -> None:
        """On a faster way for the bytes, where there is one. Raises TransferError: the next time without."""
        if peer.name in self._plain:
            return
        try:
            if self.options.transport == "torch":
                log.info("%s sends over torch.distributed (%s)", peer.name, ways.meet(channel, self._device))
            elif self._near is not None and peer.machine == self._machine:
                mapped = ways.borrow(channel, self._machine, self._near.borrow)
                log.info("memory of %s is %s", peer.name, "mapped" if mapped else "not lent just now")
        except TransferError as error:
            log.warning("%s sends over TCP: %s", peer.name, error)
            self._plain.add(peer.name)
            raise

    def _began(self, whole: Manifest, work: Work) -> None:
        if self._held is None:
            self._shelf.put(Source(whole, self._addresses, work, self._guard, self._locate))
        elif whole.digest == self._held.digest:
            work.keep(in_pages(whole))
        else:
            raise PeerViolation("its content differs from that of the pages that are held, under one fingerprint")
        self._work = work

    def _give_up(self) -> None:
        """What is there is overwritten from disk next."""
        if self._held is not None and self._near is not None and self._near.together is not None:
            self._near.together.let_go()
        self._held = None
        self._shelf.put(None)
        if self._work is not None:
            self._work.forget()
        self._guard.close()
        self._guard.open()
        self._work = None
        self._publish(port=0, have=0, source="")

    # ---- serving

    def serve(self, identity: Identity, table: Table) -> None:
        """All of it is here now. Sums are made on a side thread where they did not come with the weights."""
        if self._work is not None and self._fingerprint == identity.fingerprint and self._addresses == table.addresses:
            if self._held is not None:
                self._serve(self._held)
            return
        self._begin(identity, table, 0.0)
        threading.Thread(target=self._sum_up, args=(identity, table), name="vnpu-sums", daemon=True).start()

    def offer(self, *, served: bool) -> None:
        """Whether others may count on what `serve` told them."""
        self._publish(port=self._port if served else 0)

    def _sum_up(self, identity: Identity, table: Table) -> None:
        if self._cpus:
            os.sched_setaffinity(0, self._cpus)
        grid = Grid(table.extents)
        sums = [self._sum(grid, table, number) for number in range(grid.blocks)]
        self._serve(manifest(identity, table.extents, sums))

    def _serve(self, whole: Manifest) -> None:
        self._shelf.put(Source(whole, self._addresses, None, self._guard, self._locate))
        self._publish(have=whole.size, source="")
        log.info("rank %d serves %d bytes at %s:%d", self._rank, whole.size, self._host, self._port)

    def _sum(self, grid: Grid, table: Table, number: int) -> int:
        block = grid.block(number)
        while True:
            with suppress(Switching), self._guard.waiting():  # who sleeps without its weights may sleep for long
                address = table.addresses[block.extent] + block.offset
                return _native.crc32c(self._locate(address) if self._locate else address, block.length)

    def close(self) -> None:
        """Serve nobody any more; for tests: an engine serves until its process ends."""
        self._news.close()
        for shelf in (self._shelf, self._files):
            if shelf is not None:
                shelf.close()
        self._pace.end()
        if self._listener is not None:
            self._listener.stop()

    # ---- telling

    @property
    def _port(self) -> int:
        return self._listener.port if self._listener else 0

    def _publish(self, **changes: object) -> None:
        with self._telling:  # sums are ready on one thread while another one withdraws
            if self._seed is not None:
                self._seed = msgspec.structs.replace(self._seed, **changes)
                self._news.changed()

    def _now(self) -> Seed | None:
        """The seed as of now."""
        seed, client, work = self._seed, self._fetching, self._work
        if seed is None:
            return None
        if client is not None and work is not None:
            seed = msgspec.structs.replace(
                seed, have=min(work.landed * seed.total // max(1, work.blocks), seed.total - 1), source=client.sources
            )
        return msgspec.structs.replace(seed, streams=self._listener.clients if self._listener else 0)
