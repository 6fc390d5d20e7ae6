"""`python -m tests.helpers.source_process WAY N`: a source in a process of its own, which others may join through
torch.distributed where WAY is `torch`. It says its port; where N is not negative it begins with block N, says so, and
never goes on."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any

from tests.helpers.weights import LOCAL, Rank
from tests.helpers.wires import TRUST
from transfer.netloader import wire
from transfer.netloader.server import Server
from transfer.netloader.shelf import Shelf
from transfer.netloader.source import Source
from transfer.transports.channel import Channel
from transfer.transports.listener import Listener

LENGTHS = (12 << 20, 100)


def say(word: object) -> None:
    sys.stdout.write(f"{word}\n")
    sys.stdout.flush()


def stop_in(owner: Any, name: str, due: Callable[..., bool]) -> None:
    """`name` says so and never returns, once it is due."""
    original = getattr(owner, name)

    def method(*args: Any, **more: Any) -> Any:
        if due(*args, **more):
            say("there")
            threading.Event().wait()
        return original(*args, **more)

    setattr(owner, name, method)


def main() -> None:
    way, last = sys.argv[1], int(sys.argv[2])
    if way == "torch":
        from transfer.transports.collective import Pair

        stop_in(Pair, "push", lambda pair, *_: pair._number == last)
    else:
        send = Channel.send_run
        Channel.send_run = lambda channel, blocks, *args, **more: send(channel, blocks[:1], *args, **more)  # type: ignore[method-assign]
        stop_in(Channel, "send_run", lambda _, blocks, *__, **___: blocks[0].position == last)
    rank = Rank(LENGTHS, seed=1)
    server = Server(Shelf(Source(rank.manifest(), rank.addresses)))
    with Listener(LOCAL, 0, TRUST, wire.SERVICE, server.serve, max_message=wire.MAX_MESSAGE) as listener:
        say(listener.port)
        sys.stdin.read()


if __name__ == "__main__":
    main()
