"""Two ends of one connection for tests of the transfer."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from transfer.transports.channel import Channel
from transfer.transports.deadline import Deadline
from transfer.transports.trust import Trust

T = TypeVar("T")

KEY = b"a key for tests, 32 bytes long.."
TRUST = Trust(KEY)
PATIENCE_S = 30.0


def soon() -> Deadline:
    """Generous: no test waits for it to pass."""
    return Deadline.after(PATIENCE_S)


@contextmanager
def two_ends() -> Iterator[tuple[Channel, Channel]]:
    a, b = socket.socketpair()
    with Channel(a) as one, Channel(b) as other:
        yield one, other


def meanwhile(work: Callable[[], T]) -> Callable[[], T]:
    """Run `work` in a thread; the function that is returned waits for it and hands on its result or error."""
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:  # noqa: BLE001  # handed on below
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()

    def result() -> T:
        thread.join(PATIENCE_S)
        assert not thread.is_alive(), "it does not end"
        if errors:
            raise errors[0]
        return results[0]

    return result
