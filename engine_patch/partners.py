"""What ranks of one engine have of one another's memory, as the memory hands see it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from engine_patch.stopwatch import Stopwatch


class Partners(Protocol):
    """`engine_patch.sharded_linear.sharing.Shared` is one."""

    @property
    def alone(self) -> bool:
        """The weights are nobody's but this rank's, so all of them may lie in the pages of another engine."""
        ...

    def meeting(self, watch: Stopwatch) -> AbstractContextManager[None]:
        """Around a restore's mapping: afterwards the others' pages are mapped too, where all ranks have theirs."""
        ...

    def part(self) -> None:
        """Let go of the others' pages: all are about to leave. Idempotent."""
        ...

    @property
    def bytes(self) -> int:
        """Of pages of this rank's own for what passes through."""
        ...


class Apart:
    """A rank that has nothing of another's."""

    alone = True

    def meeting(self, watch: Stopwatch) -> AbstractContextManager[None]:
        return nullcontext()

    def part(self) -> None:
        pass

    @property
    def bytes(self) -> int:
        return 0
