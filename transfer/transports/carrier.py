"""How bytes of DATA travel beside the connection, where both ends have agreed on another way.

The channel still says what comes, in order, with its sum; then the sender's `Giver` hands the bytes over and the
receiver's `Taker` takes them. What a giver has no place for goes through the connection as before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from transfer.transports.deadline import Deadline


class Giver(Protocol):
    """Used by the one thread that sends, but for `abort`."""

    @property
    def quiet(self) -> bool:
        """`push` does nothing: what is announced may leave together with what follows."""

    def place(self, address: int, length: int) -> int | None:
        """What to call these bytes to the taker, below 2^64; None: they go through the connection."""

    def push(self, address: int, length: int, deadline: Deadline) -> None:
        """Hand over what was just announced. Raises PeerLost."""

    def abort(self) -> None:
        """A call that is blocked raises PeerLost. From any thread, idempotent."""

    def close(self) -> None:
        """Nobody uses it any more. Idempotent."""


class Piece(NamedTuple):
    """Bytes that lie at a taker's `place` and belong at `address`, and their CRC-32C."""

    place: int
    address: int
    length: int
    sum: int


class Taker(Protocol):
    """Used by the one thread that receives, but for `abort`; by several at once where it is `parallel`."""

    @property
    def parallel(self) -> bool:
        """Bytes are there as soon as they are announced, and may be taken in any order."""

    def take(self, place: int, address: int, length: int, deadline: Deadline) -> int:
        """Write the bytes to `address`; their CRC-32C as they are there now.

        Raises:
            PeerLost: they do not come any more. PeerViolation: there is no such place.
        """

    def take_all(self, pieces: Sequence[Piece], deadline: Deadline) -> int:
        """`take` of each in turn; how many had their sum, before the first that had not. Raises as `take`."""

    def abort(self) -> None:
        """As `Giver.abort`."""

    def close(self) -> None:
        """As `Giver.close`."""
