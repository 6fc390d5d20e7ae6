"""Every way that bytes take from one process to another, as two ends of a channel."""

from __future__ import annotations

import ctypes
import mmap
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import NamedTuple

from tests.helpers.wires import meanwhile, soon
from transfer.transports.channel import Channel
from transfer.transports.collective import Side, join
from transfer.transports.window import Lent, Window


class Ends(NamedTuple):
    """`source` sends what lies in `memory` (an address and its length), `starter` receives."""

    source: Channel
    starter: Channel
    memory: int
    length: int


SIZE = 4 << 20


@contextmanager
def _shared() -> Iterator[tuple[int, int]]:
    """Descriptor and address of `SIZE` bytes that another process could map."""
    descriptor = os.memfd_create("source")
    try:
        os.ftruncate(descriptor, SIZE)
        with mmap.mmap(descriptor, SIZE) as held:
            first = ctypes.c_char.from_buffer(held)
            try:
                yield descriptor, ctypes.addressof(first)
            finally:
                del first
    finally:
        os.close(descriptor)


@contextmanager
def tcp() -> Iterator[Ends]:
    """The plain connection, on loopback."""
    with socket.create_server(("127.0.0.1", 0)) as server, _shared() as (_, address):
        dialled = socket.create_connection(server.getsockname())
        accepted, _ = server.accept()
        with Channel(accepted) as source, Channel(dialled) as starter:
            yield Ends(source, starter, address, SIZE)


@contextmanager
def mapped() -> Iterator[Ends]:
    """The starter has the source's memory mapped, the last page excepted: that goes through the connection."""
    with tcp() as ends, _shared() as (descriptor, address):
        lent = SIZE - mmap.PAGESIZE

        def place(at: int, length: int) -> int | None:
            return at - address if address <= at and at + length <= address + lent else None

        ends.source.carry(giver=Lent(place))
        ends.starter.carry(taker=Window([(descriptor, lent)]))
        yield Ends(ends.source, ends.starter, address, SIZE)


@contextmanager
def paired() -> Iterator[Ends]:
    """torch.distributed, gloo."""
    with tcp() as ends:
        joining = meanwhile(lambda: join(ends.source, Side.SOURCE, soon()))
        ends.starter.carry(taker=join(ends.starter, Side.STARTER, soon()))
        ends.source.carry(giver=joining())
        yield ends


TRANSPORTS: dict[str, Callable[[], AbstractContextManager[Ends]]] = {"tcp": tcp, "mapped": mapped, "paired": paired}
