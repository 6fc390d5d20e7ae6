"""`python -m benchmarks.weight_stream.reader MODEL KEY_FILE HOST PORT CORE`: a client without an engine that keeps
fetching a real engine's checkpoint over TCP, so that the source's decoding can be timed meanwhile; on other cores than
CORE, where that engine computes.

Talks in lines: `go`, and later `stop`, which is answered with the bytes that came and the seconds it took.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path

from engine_patch.checkpoints import Room
from engine_patch.revision import revision
from transfer.netloader import wire
from transfer.netloader.checkpoint import checkpoint_identity
from transfer.netloader.client import Client
from transfer.netloader.manifest import Manifest
from transfer.netloader.plan import Peer
from transfer.netloader.work import Work
from transfer.transports.channel import Channel
from transfer.transports.deadline import Deadline
from transfer.transports.dial import dial
from transfer.transports.trust import Trust

LIMIT_S = 300.0


class Reader:
    """Fetches into the same memory again and again: making new pages would be slower than the stream."""

    def __init__(self, folder: Path, trust: Trust, peer: Peer) -> None:
        self._identity = checkpoint_identity(revision(folder))
        self._trust = trust
        self._peer = peer
        self._room = Room()
        self._works: list[tuple[Manifest, Work]] = []
        self._stopping = False

    def run(self) -> None:
        """Until `stop`."""
        me = Peer(name="me", host=self._peer.host, port=0, ticket=(1.0, "me"), whole=False)
        while not self._stopping:
            Client(me, self._identity, self._room, lambda: [self._peer], self._dial, self._began).run(LIMIT_S)

    def stop(self) -> None:
        """From another thread."""
        self._stopping = True
        for _, work in self._works:
            work.end()

    def taken(self) -> int:
        """Bytes that have come since it was asked last."""
        works, self._works, self._stopping = self._works, [], False
        return sum(work.landed * whole.size // work.blocks for whole, work in works)

    def _dial(self, peer: Peer, deadline: Deadline) -> Channel:
        return dial(peer.host, peer.port, self._trust, wire.SERVICE, deadline)

    def _began(self, whole: Manifest, work: Work) -> None:
        if not len(self._room):
            self._room.make(whole)
        self._works.append((whole, work))
        if self._stopping:
            work.end()


def leave(core: int) -> None:
    """The source computes there; where there is no other, stay."""
    if others := os.sched_getaffinity(0) - {core}:
        os.sched_setaffinity(0, others)


def main() -> None:
    leave(int(sys.argv[5]))
    folder, key, host, port = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
    reader = Reader(folder, Trust(key.read_bytes().strip()), Peer(name="source", host=host, port=port))
    for _ in sys.stdin:  # go
        running, begun = threading.Thread(target=reader.run, daemon=True), time.perf_counter()
        running.start()
        sys.stdin.readline()  # stop
        reader.stop()
        running.join()
        seconds = time.perf_counter() - begun
        sys.stdout.write(json.dumps({"bytes": reader.taken(), "seconds": seconds}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
