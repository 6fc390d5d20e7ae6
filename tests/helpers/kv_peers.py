"""A prefill rank's memory in this process, behind each kind of reader."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tests.helpers.wires import TRUST
from transfer.kv.mapped import MappedReader, Window
from transfer.kv.messages import Answer, Refused, Say
from transfer.kv.reader import Reader, Span
from transfer.kv.tcp import SERVICE, KvServer, TcpReader
from transfer.transports.dial import dial
from transfer.transports.listener import Listener

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
        Window([(descriptor, len(memory))]) as window,
        memoryview(memory)[:size] as view,
    ):
        reader = MappedReader({HANDLE: Span(window.address, size)})
        yield Peer(view, reader)
        reader.close()


@contextmanager
def tcp_peer(size: int) -> Iterator[Peer]:
    with shared(size) as (descriptor, memory), Window([(descriptor, len(memory))]) as window:
        server = KvServer({HANDLE: Span(window.address, size)}, refuse)
        listeners = [Listener(LOCAL, 0, TRUST, SERVICE, server.serve)]

        def restart() -> None:
            listeners.pop().stop()
            listeners.append(Listener(LOCAL, 0, TRUST, SERVICE, server.serve))

        reader = TcpReader(lambda deadline: dial(LOCAL, listeners[0].port, TRUST, SERVICE, deadline))
        with memoryview(memory)[:size] as view:
            yield Peer(view, reader, restart)
        reader.close()
        listeners[0].stop()


PEERS = {"mapped": mapped_peer, "tcp": tcp_peer}
