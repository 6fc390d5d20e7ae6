"""Copies what a source on this machine lends, by threads of its own, and lands each block that is right."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from types import TracebackType

from transfer.errors import Corrupt
from transfer.netloader.work import Work
from transfer.transports.carrier import Piece
from transfer.transports.channel import Channel
from transfer.transports.deadline import Deadline

COPIERS = 2
"""Threads: one alone does not fill the memory bus."""
BATCH = 16
"""Blocks that a thread takes at once: what is done in Python for each would slow both down."""
AHEAD = 2 * COPIERS
"""Batches that wait for a thread or are with one."""


class Copier:
    """Used by one thread. A context manager: when it is left, nothing is written any more."""

    def __init__(self, channel: Channel, work: Work) -> None:
        self._channel = channel
        self._work = work
        self._threads = ThreadPoolExecutor(COPIERS, "vnpu-copy")
        self._numbers: list[int] = []
        self._pieces: list[Piece] = []
        self._under_way: deque[Future[None]] = deque()
        self._landed: list[int] = []

    @property
    def blocks(self) -> int:
        """How many have landed."""
        return sum(self._landed)

    @property
    def busy(self) -> bool:
        """Batches are under way; `settle` waits for them."""
        return bool(self._under_way)

    def __enter__(self) -> Copier:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        wait(self._under_way)
        self._threads.shutdown()

    def put(self, number: int, piece: Piece, deadline: Deadline, *, more: bool) -> None:
        """Block `number` is there to be taken. `more`: another frame is here already, so they may go together; where
        that is not the next to be put, `begin` must follow.

        Raises:
            TransferError: one of those before could not be taken, or is damaged.
        """
        self._numbers.append(number)
        self._pieces.append(piece)
        if not more or len(self._pieces) >= BATCH:
            self.begin(deadline)

    def put_all(self, first: int, pieces: Sequence[Piece], deadline: Deadline) -> None:
        """Blocks from `first` on are there, and go to the threads now. Raises as `put`."""
        self.begin(deadline)
        for at in range(0, len(pieces), BATCH):
            some = pieces[at : at + BATCH]
            self._submit(range(first + at, first + at + len(some)), some, deadline)

    def begin(self, deadline: Deadline) -> None:
        """What was put goes to a thread now. Raises as `put`."""
        if self._pieces:
            numbers, pieces, self._numbers, self._pieces = self._numbers, self._pieces, [], []
            self._submit(numbers, pieces, deadline)

    def _submit(self, numbers: Sequence[int], pieces: Sequence[Piece], deadline: Deadline) -> None:
        self.settle(AHEAD - 1)
        self._under_way.append(self._threads.submit(self._copy, numbers, pieces, deadline))

    def settle(self, most: int = 0) -> None:
        """Until at most so many batches are under way. Raises as `put`."""
        while len(self._under_way) > most:
            self._under_way.popleft().result()

    def _copy(self, numbers: Sequence[int], pieces: Sequence[Piece], deadline: Deadline) -> None:
        right = self._channel.take_all(pieces, deadline)
        self._work.land(*numbers[:right])
        self._landed.append(right)
        if right < len(pieces):
            raise Corrupt(f"block {numbers[right]} is damaged in the source's memory", remedy="fetch it again")
