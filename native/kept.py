"""What a process keeps so that a restarted daemon gets it back: duplicated descriptors of its chunks and masters.

The pages live as long as anybody has a descriptor or a mapping of them, so they outlive the daemon in engines. A new
daemon has the journal's word for who holds what, and nothing in its hands; with the descriptors it can give the pages
on to others once they are unmapped, and share the masters with engines to come.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable, Iterable, Sequence

from native import protocol
from native.frames import close_all
from native.protocol import MAX_FDS

log = logging.getLogger(__name__)

Send = Callable[[protocol.Request, Sequence[int]], protocol.Reply]
"""Sends a request with descriptors beside it, on a connection that has said hello."""


class Kept:
    """Of one process, shared by all its clients. Thread-safe. It owns the descriptors that are put into it."""

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._generation = 0
        self._chunks: dict[str, dict[int, int]] = {}
        self._masters: dict[str, int] = {}
        self._answered: tuple[int, set[protocol.Request]] = (0, set())
        """Offered to the daemon of that generation and taken or refused: not offered to it again."""

    @property
    def generation(self) -> int:
        """Of the daemon that was welcomed last; 0: none yet."""
        return self._generation

    def put_chunk(self, device: str, chunk: int, descriptor: int) -> None:
        """Until `drop_chunks`: this process holds that chunk."""
        with self._turn:
            self._chunks.setdefault(device, {})[chunk] = descriptor

    def drop_chunks(self, device: str, chunks: Iterable[int]) -> None:
        """They are unmapped. What was not put is passed over."""
        with self._turn:
            mine = self._chunks.get(device, {})
            close_all(mine.pop(chunk) for chunk in chunks if chunk in mine)

    def put_master(self, digest: str, descriptor: int) -> None:
        """Until `drop_master`: this process has that master mapped."""
        with self._turn:
            old = self._masters.pop(digest, None)
            self._masters[digest] = descriptor
            close_all(() if old is None else (old,))

    def drop_master(self, digest: str) -> None:
        """It is unmapped. Idempotent."""
        with self._turn:
            descriptor = self._masters.pop(digest, None)
            close_all(() if descriptor is None else (descriptor,))

    def hand_back(self, generation: int, send: Send) -> None:
        """Called with each daemon that welcomed this process: where it is another start than the last time, it gets
        everything. What it refuses stays with this process, as if it had not been offered.

        Raises whatever `send` raises; the next call goes on from there.
        """
        with self._turn:
            if generation == self._generation:
                return
            if self._answered[0] != generation:
                self._answered = (generation, set())
            if self._generation:
                for request, beside in self._returns():
                    if request not in self._answered[1]:
                        reply = send(request, beside)
                        self._answered[1].add(request)
                        if isinstance(reply, protocol.Refused):
                            log.warning("%s was refused: %s", type(request).__name__, reply.message)
            self._generation = generation

    def close(self) -> None:
        """Everything; idempotent."""
        with self._turn:
            for chunks in self._chunks.values():
                close_all(chunks.values())
            close_all(self._masters.values())
            self._chunks.clear()
            self._masters.clear()

    def _returns(self) -> Iterable[tuple[protocol.Request, Sequence[int]]]:
        for digest, descriptor in self._masters.items():
            yield protocol.HandBackMaster(digest), (descriptor,)
        for device, chunks in self._chunks.items():
            items = iter(sorted(chunks.items()))
            while some := tuple(itertools.islice(items, MAX_FDS)):
                yield protocol.HandBackChunks(device, tuple(c for c, _ in some)), tuple(d for _, d in some)
