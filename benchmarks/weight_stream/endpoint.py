"""The processes of this benchmark: a source, a starter, and a bare sender that checks nothing.

`python -m benchmarks.weight_stream.endpoint ROLE SIZE [LIMIT]` talks in lines of JSON on its standard input and output;
the parent is the directory.
"""

from __future__ import annotations

import ctypes
import json
import os
import socket
import sys
import threading
from collections.abc import Callable
from typing import Any

from benchmarks.weight_stream.layout import BLOCK, KEY, LOCAL, extents, identity
from benchmarks.weight_stream.pages import CHUNK, Pages
from transfer.netloader import ways, wire
from transfer.netloader.client import Client
from transfer.netloader.manifest import Manifest, manifest
from transfer.netloader.plan import Peer
from transfer.netloader.server import Server
from transfer.netloader.shelf import Shelf
from transfer.netloader.source import Source, block_sums
from transfer.netloader.ways import Loan
from transfer.netloader.wire import Lent
from transfer.netloader.work import Work
from transfer.transports.channel import Channel, view
from transfer.transports.deadline import Deadline
from transfer.transports.dial import dial
from transfer.transports.frame import Header
from transfer.transports.listener import Listener
from transfer.transports.pace import SharedPace
from transfer.transports.trust import Trust
from transfer.transports.window import Window

LIMIT_S = 300.0


class Card:
    """A stand-in for an endpoint's own network card: so many bytes a second each way; 0: no limit."""

    def __init__(self, limit: float) -> None:
        self.out = SharedPace(lambda: limit)
        self._in = SharedPace(lambda: limit)

    def limit_receiving(self, channel: Channel) -> Channel:
        """Waits after each block, so that the sender's next one is not taken from the wire before."""
        expect = channel.expect

        def slower(due: Header, address: int, deadline: Deadline) -> Header:
            header = expect(due, address, deadline)
            if header == due:
                self._in.wait(header.length)
            return header

        channel.expect = slower  # type: ignore[method-assign]
        return channel


class Endpoint:
    """Memory of `size` bytes that listens."""

    def __init__(self, size: int, limit: float, *, shared: bool = False) -> None:
        """`shared`: others may map it."""
        self.pages = Pages(size)
        self.address = self.pages.address
        self.memory = view(self.address, size)
        ctypes.memset(self.address, 7, size)
        self.extents, self.identity = extents(size), identity(size)
        self.card = Card(limit)
        self.shelf = Shelf()
        self.listener = Listener(
            LOCAL, 0, Trust(KEY), wire.SERVICE, Server(self.shelf, self.lend if shared else None).serve,
            pace=self.card.out,
            max_message=wire.MAX_MESSAGE,
        )  # fmt: skip

    def lend(self, machine: str) -> Loan:
        """All of it."""

        def place(address: int, length: int) -> int | None:
            return address - self.address

        return Loan(Lent(master=",".join(str(descriptor) for descriptor, _ in self.pages.chunks)), place)

    @property
    def addresses(self) -> list[int]:
        starts, at = [], self.address
        for extent in self.extents:
            starts.append(at)
            at += extent.length
        return starts

    def serve(self) -> None:
        whole = manifest(self.identity, self.extents, block_sums(self.extents, self.addresses))
        self.shelf.put(Source(whole, self.addresses))

    def fetch(self, me: Peer, peers: list[Peer], lender: int = 0) -> float:
        """Seconds from the first dial to the last block. `lender`: pid of the source whose memory is mapped."""

        def began(whole: Manifest, work: Work) -> None:
            self.shelf.put(Source(whole, self.addresses, work))

        def connect(peer: Peer, deadline: Deadline) -> Channel:
            channel = dial(peer.host, peer.port, Trust(KEY), wire.SERVICE, deadline)
            return self.card.limit_receiving(channel)

        def agree(peer: Peer, channel: Channel) -> None:
            if lender:
                ways.borrow(channel, LOCAL, lambda lent: mapped(lender, lent.master))

        client = Client(me, self.identity, self.addresses, lambda: peers, connect, began, agree=agree)
        return client.run(LIMIT_S).seconds


def mapped(process: int, descriptors: str) -> Window:
    """Another process's shared memory; in the product the node daemon hands it over."""
    mine = [os.open(f"/proc/{process}/fd/{one}", os.O_RDONLY) for one in descriptors.split(",")]
    try:
        return Window([(one, CHUNK) for one in mine])
    finally:
        for one in mine:
            os.close(one)


def bare(size: int) -> None:
    """Sends `size` bytes of memory to whoever connects, in blocks of the same size, and that is all."""
    pages = Pages(size)
    ctypes.memset(pages.address, 7, size)
    data = view(pages.address, size)
    with socket.create_server((LOCAL, 0)) as server:
        say({"port": server.getsockname()[1]})
        while True:
            sock, _ = server.accept()
            with sock:
                for at in range(0, size, BLOCK):
                    sock.sendall(data[at : at + BLOCK])


def say(value: Any) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def obey(endpoint: Endpoint) -> None:
    """`{"me": …, "peers": […]}` is an order to fetch, answered with the seconds it took."""
    say({"port": endpoint.listener.port})
    for line in sys.stdin:
        order = json.loads(line)
        me, *peers = (
            Peer(name=p["name"], host=LOCAL, port=p["port"], ticket=(p["at"], p["name"]), whole=p["at"] == 0)
            for p in [order["me"], *order["peers"]]
        )
        say({"seconds": endpoint.fetch(me, peers)})


def main() -> None:
    role, size, limit = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]) if len(sys.argv) > 3 else 0.0
    roles: dict[str, Callable[[], None]] = {"bare": lambda: bare(size)}
    if role in roles:
        roles[role]()
        return
    endpoint = Endpoint(size, limit, shared=role == "lender")
    if role in ("source", "lender"):
        endpoint.serve()
        say({"port": endpoint.listener.port})
        threading.Event().wait()
    obey(endpoint)


if __name__ == "__main__":
    main()
