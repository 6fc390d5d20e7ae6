"""A prefill rank's memory in this process, behind each kind of reader."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from typing import ClassVar

import pytest

from tests.helpers.wires import TRUST
from transfer.kv.boxes import Box
from transfer.kv.mapped import MappedReader, Part
from transfer.kv.messages import Answer, Refused, Say
from transfer.kv.mooncake import Engine, MooncakeReader, make_engine, serve
from transfer.kv.reader import Reader, Span
from transfer.kv.tcp import SERVICE, KvServer, TcpReader
from transfer.transports.deadline import Deadline
from transfer.transports.dial import dial
from transfer.transports.listener import Listener
from transfer.transports.window import Window

HANDLE = 5
LOCAL = "127.0.0.1"
PAGE = mmap.PAGESIZE


@dataclass
class Peer:
    """`memory`: region `HANDLE` of the peer, writable here; `reader` reads it; `restart` kills the peer's side and
    starts it anew (None where there is no such side)."""

    memory: memoryview
    reader: Reader
    restart: Callable[[], None] | None = None


@contextmanager
def shared(size: int) -> Iterator[tuple[int, mmap.mmap]]:
    """A descriptor of shared memory and a mapping of it."""
    descriptor = os.memfd_create("kv")
    try:
        os.ftruncate(descriptor, -(-size // PAGE) * PAGE)
        memory = mmap.mmap(descriptor, -(-size // PAGE) * PAGE)
        yield descriptor, memory
        memory.close()
    finally:
        os.close(descriptor)


def refuse(say: Say) -> Answer:
    return Refused(say.request, say.reader, "no session here")


@contextmanager
def mapped_peer(size: int) -> Iterator[Peer]:
    with (
        shared(size) as (descriptor, memory),
        closing(Window([(descriptor, len(memory))])) as window,
        memoryview(memory)[:size] as view,
    ):
        reader = MappedReader(window, {HANDLE: Part(0, size)})
        yield Peer(view, reader)
        reader.close()


@contextmanager
def tcp_peer(size: int) -> Iterator[Peer]:
    with (
        shared(size) as (descriptor, memory),
        closing(Window([(descriptor, len(memory))])) as window,
        window.reading() as address,
    ):
        server = KvServer({HANDLE: Span(address, size)}, refuse)
        listeners = [Listener(LOCAL, 0, TRUST, SERVICE, server.serve)]

        def restart() -> None:
            listeners.pop().stop()
            listeners.append(Listener(LOCAL, 0, TRUST, SERVICE, server.serve))

        reader = TcpReader(lambda deadline: dial(LOCAL, listeners[0].port, TRUST, SERVICE, deadline))
        with memoryview(memory)[:size] as view:
            yield Peer(view, reader, restart)
        reader.close()
        listeners[0].stop()


class PlayedEngine:
    """Mooncake's TransferEngine as it was measured: slices between registered memory; a batch of too many slices, or
    one to a peer that is gone, fails with part of it landed, and everything after that fails too."""

    alive: ClassVar[dict[str, PlayedEngine]] = {}
    made: ClassVar[int] = 0

    def __init__(self) -> None:
        self.registered: list[tuple[int, int]] = []
        self.batches: list[int] = []
        self.broken = False
        PlayedEngine.made += 1
        self.name = f"{LOCAL}:{PlayedEngine.made}"
        self.alive[self.name] = self

    def initialize(self, host: str, metadata: str, protocol: str, device: str) -> int:
        return 0

    def get_rpc_port(self) -> int:
        return int(self.name.rpartition(":")[2])

    def register_memory(self, address: int, length: int) -> int:
        self.registered.append((address, length))
        return 0

    def unregister_memory(self, address: int) -> int:
        self.registered = [one for one in self.registered if one[0] != address]
        return 0

    def holds(self, address: int, length: int) -> bool:
        return any(at <= address and address + length <= at + size for at, size in self.registered)

    def batch_transfer_sync_read(self, peer: str, local: list[int], remote: list[int], lengths: list[int]) -> int:
        other = self.alive.get(peer)
        self.batches.append(len(lengths))
        self.broken |= other is None or len(lengths) > 1024
        for to, whence, length in zip(local, remote, lengths, strict=True):
            if not self.holds(to, length) or other is None or not other.holds(whence, length):
                self.broken = True
                break
            ctypes.memmove(to, whence, length)
        return -1 if self.broken else 0


@contextmanager
def mooncake_peer(size: int, make: Callable[[], Engine] = PlayedEngine) -> Iterator[Peer]:
    with shared(size) as (_, memory), memoryview(memory)[:size] as view:
        held = ctypes.c_char.from_buffer(memory)
        region = Span(ctypes.addressof(held), size)
        del held
        theirs = make()
        serve(theirs, {HANDLE: region})
        peer = f"{LOCAL}:{theirs.get_rpc_port()}"
        reader = MooncakeReader(make, peer, {HANDLE: region}, [])
        yield Peer(view, AnyTarget(reader))
        reader.close()


class AnyTarget:
    """Registers each target while it is read into, as an engine does once for its whole cache."""

    def __init__(self, inner: MooncakeReader) -> None:
        self.inner = inner

    def read(self, handle: int, boxes: Sequence[Box], into: Span, deadline: Deadline, stop: Callable[[], bool]) -> int:
        with self.inner.target(into):
            return self.inner.read(handle, boxes, into, deadline, stop)

    def abort(self) -> None:
        self.inner.abort()

    def close(self) -> None:
        self.inner.close()


def real_mooncake(size: int) -> AbstractContextManager[Peer]:
    """Mooncake itself over TCP: two engines in this process."""
    return mooncake_peer(size, lambda: make_engine(LOCAL))


PEERS = {"mapped": mapped_peer, "tcp": tcp_peer, "mooncake, played": mooncake_peer, "mooncake": real_mooncake}
EACH = [pytest.param(name, marks=[pytest.mark.system] if name == "mooncake" else []) for name in PEERS]
"""For tests of every kind. Mooncake itself wants Debian's libibverbs1."""
