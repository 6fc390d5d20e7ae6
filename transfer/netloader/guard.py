"""Reading memory that may go away: consistent or refused, never torn.

While an engine is switched its pages are unmapped and come back. A server reads them only inside `reading()`; who
switches calls `close` first, which lets no new reader in and waits for those inside, and breaks the connection of one
that does not come out: its client finishes elsewhere.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from native import _native
from transfer.errors import TransferError

GRACE_S = 0.2
"""A block on its way takes a few milliseconds; a client that is slower must not hold up a switch."""


class Switching(TransferError):
    """The memory is coming or going: nothing can be read just now."""


class Guard:
    """Thread-safe. Open at first."""

    def __init__(self, *, is_open: bool = True) -> None:
        self._changed = threading.Condition()
        self._open = is_open
        self._inside: list[Callable[[], None]] = []
        self.generation = 0
        self.halt = _native.Halt()
        """Set while it is closed: who sends many blocks inside comes out between two of them."""

    @contextmanager
    def reading(self, abort: Callable[[], None], within_s: float = 0.0) -> Iterator[int]:
        """Within it the memory stays. `abort` is called, from another thread, where it takes too long. The generation
        changes with every `open`.

        Raises:
            Switching: it is closed, and does not open `within_s`.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._open, within_s):
                raise Switching("the engine is being switched", remedy="ask again, or another source")
            self._inside.append(abort)
            generation = self.generation
        try:
            yield generation
        finally:
            with self._changed:
                self._inside.remove(abort)
                self._changed.notify_all()

    def waiting(self, timeout_s: float = 60.0) -> AbstractContextManager[int]:
        """`reading` for who can wait until it is open, and does not take long. Raises Switching: it did not open in
        time."""
        return self.reading(lambda: None, timeout_s)

    def close(self, grace_s: float = GRACE_S, limit_s: float = 30.0) -> bool:
        """Let nobody in and wait until all are out; after `grace_s` break those inside. True: the memory may go.
        False: a reader does not even let go of a broken connection."""
        with self._changed:
            self._open = False
            self.halt.set()
            if self._changed.wait_for(lambda: not self._inside, grace_s):
                return True
            for abort in self._inside:
                abort()
            return self._changed.wait_for(lambda: not self._inside, limit_s)

    def open(self) -> None:
        """The memory is there again."""
        with self._changed:
            self._open = True
            self.halt.clear()
            self.generation += 1
            self._changed.notify_all()
