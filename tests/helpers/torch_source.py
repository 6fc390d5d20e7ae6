"""`python -m tests.helpers.torch_source N`: a source in a process of its own that other processes may join through
torch.distributed. It says its port; where N is not negative it announces its block N, says so, and never sends it."""

from __future__ import annotations

import sys
import threading

from tests.helpers.weights import LOCAL, Rank
from tests.helpers.wires import TRUST
from transfer.netloader import wire
from transfer.netloader.server import Server
from transfer.netloader.shelf import Shelf
from transfer.netloader.source import Source
from transfer.transports.collective import Pair
from transfer.transports.deadline import Deadline
from transfer.transports.listener import Listener

LENGTHS = (12 << 20, 100)


def say(word: object) -> None:
    sys.stdout.write(f"{word}\n")
    sys.stdout.flush()


def main() -> None:
    last = int(sys.argv[1])
    push, never = Pair.push, threading.Event()

    def until_the_last(pair: Pair, address: int, length: int, deadline: Deadline) -> None:
        if pair._number == last:
            say("there")
            never.wait()
        push(pair, address, length, deadline)

    Pair.push = until_the_last  # type: ignore[method-assign]
    rank = Rank(LENGTHS, seed=1)
    server = Server(Shelf(Source(rank.manifest(), rank.addresses)))
    with Listener(LOCAL, 0, TRUST, wire.SERVICE, server.serve, max_message=wire.MAX_MESSAGE) as listener:
        say(listener.port)
        sys.stdin.read()


if __name__ == "__main__":
    main()
