"""Engines' weights without engines: memory with extents, sources that listen, and clients that fetch."""

from __future__ import annotations

import ctypes
import random
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import cache
from types import TracebackType

from tests.helpers.wires import TRUST
from transfer.netloader import wire
from transfer.netloader.client import Client, Streamed
from transfer.netloader.guard import Guard
from transfer.netloader.identity import Identity
from transfer.netloader.manifest import BLOCK, Extent, Manifest, layout_digest, manifest
from transfer.netloader.plan import Peer
from transfer.netloader.pull import Dial
from transfer.netloader.server import Server
from transfer.netloader.shelf import Shelf
from transfer.netloader.source import Locate, Source, block_sums
from transfer.netloader.work import Work
from transfer.transports.channel import Channel
from transfer.transports.deadline import Deadline
from transfer.transports.dial import dial
from transfer.transports.listener import Listener
from transfer.transports.pace import Pace
from transfer.transports.trust import Trust

LENGTHS = (3 * BLOCK + 5, 64, BLOCK, 7)
LOCAL = "127.0.0.1"


def extents(lengths: Sequence[int] = LENGTHS) -> tuple[Extent, ...]:
    return tuple(Extent(f"tensor{n}", length, dtype="uint8", shape=(length,)) for n, length in enumerate(lengths))


def identity(lengths: Sequence[int] = LENGTHS, **changes: object) -> Identity:
    fields = {"model": "rev", "dtype": "bfloat16", "vllm": "0.32.0", "kernels": "onednn", "isa": ("avx2", "avx512f")}
    return Identity(**{**fields, "layout": layout_digest(extents(lengths)), **changes})  # type: ignore[arg-type]


@cache
def _content(lengths: tuple[int, ...], seed: int | None) -> list[bytes]:
    draw = random.Random(seed)
    return [bytes(length) if seed is None else draw.randbytes(length) for length in lengths]


class Rank:
    """The weights of one rank; empty memory where there is no `seed`."""

    def __init__(self, lengths: Sequence[int] = LENGTHS, seed: int | None = None, **changes: object) -> None:
        self.identity = identity(lengths, **changes)
        self.extents = extents(lengths)
        self.held = [bytearray(data) for data in _content(tuple(lengths), seed)]
        self.addresses = [ctypes.addressof(ctypes.c_char.from_buffer(one)) for one in self.held]

    @property
    def content(self) -> tuple[bytes, ...]:
        return tuple(bytes(one) for one in self.held)

    def manifest(self) -> Manifest:
        return manifest(self.identity, self.extents, block_sums(self.extents, self.addresses))


class Directory:
    """Who serves, as everybody sees it."""

    def __init__(self, *peers: Peer) -> None:
        self._lock = threading.Lock()
        self._peers = {peer.name: peer for peer in peers}

    def put(self, peer: Peer) -> None:
        with self._lock:
            self._peers[peer.name] = peer

    def remove(self, name: str) -> None:
        with self._lock:
            self._peers.pop(name, None)

    def __call__(self) -> list[Peer]:
        with self._lock:
            return list(self._peers.values())


class Engine:
    """A rank that listens: a whole source from the beginning, or a starter that becomes one."""

    def __init__(
        self,
        name: str,
        rank: Rank,
        directory: Directory,
        *,
        whole: bool = True,
        ticket: float = 0.0,
        pace: Pace | None = None,
        guard: Guard | None = None,
        locate: Locate | None = None,
        serve: Callable[[Callable[[Channel], None]], Callable[[Channel], None]] = lambda serve: serve,
    ) -> None:
        """`serve` may wrap what answers a client, to make trouble."""
        self.rank = rank
        self.directory = directory
        self._guard = guard
        self._locate = locate
        self.shelf = Shelf(Source(rank.manifest(), rank.addresses, None, guard, locate) if whole else None)
        self._listener = Listener(
            LOCAL, 0, TRUST, wire.SERVICE, serve(Server(self.shelf).serve), pace=pace,
            max_message=wire.MAX_MESSAGE,
        )  # fmt: skip
        self.peer = Peer(name=name, host=LOCAL, port=self._listener.port, ticket=(ticket, name), whole=whole)
        if whole:
            directory.put(self.peer)

    def fetch(self, limit_s: float = 60.0, connect: Dial | None = None) -> Streamed:
        """As a starter; it serves as soon as it knows what will come."""

        def began(whole: Manifest, work: Work) -> None:
            self.shelf.put(Source(whole, self.rank.addresses, work, self._guard, self._locate))
            self.directory.put(self.peer)

        client = Client(self.peer, self.rank.identity, self.rank.addresses, self.directory, connect or dialler(), began)
        return client.run(limit_s)

    def kill(self) -> None:
        self._listener.stop()

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()


def dialler(trust: Trust = TRUST) -> Dial:
    def connect(peer: Peer, deadline: Deadline) -> Channel:
        return dial(peer.host, peer.port, trust, wire.SERVICE, deadline)

    return connect


class Town(ExitStack):
    """Engines of one model, all stopped at the end."""

    def __init__(self, lengths: Sequence[int] = LENGTHS, seed: int = 1) -> None:
        super().__init__()
        self.directory = Directory()
        self.lengths = lengths
        self.original = Rank(lengths, seed)
        self._tickets = 0

    def source(self, name: str = "A", **more: object) -> Engine:
        return self.enter_context(Engine(name, Rank(self.lengths, 1), self.directory, **more))  # type: ignore[arg-type]

    def starter(self, name: str = "B", **more: object) -> Engine:
        self._tickets += 1
        options = {"whole": False, "ticket": float(self._tickets), **more}
        return self.enter_context(Engine(name, Rank(self.lengths), self.directory, **options))  # type: ignore[arg-type]
