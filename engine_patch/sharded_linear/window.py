"""PURE: who owns which layer of a series, and which layer lies in which buffer when.

A series is `length` layers of equal shape in the order in which a forward pass runs them. Everything here counts
*positions* in the series, never layer numbers: a pipeline stage that starts at layer 31 is no different from one that
starts at 0. (vllm-ascend's `layer_shard_linear` mixed the two up and was right only where the stage's first layer was a
multiple of the length: its issue 9622.)

Steps go on over all passes: step g runs position g % length. Its layer is asked for when step g - ahead begins, where
`ahead` is `prefetch`, but never the whole series. A rank that does not own it takes it into a buffer. Of its buffers
there are as many as the others own of any ahead + 1 layers in a row, and the layers of others take them in turns: the
one that a buffer held before lies more than `ahead` steps back and is over by then. So what a rank owns itself takes
no room in its window, and two ranks hold half of one.
"""

from __future__ import annotations

import msgspec

PREFETCH = 3
"""Layers that are asked for ahead where nobody says otherwise. Two ranks that own every other layer have two buffers
then; docs/sharded-linear.md has what more of them gain."""


class Window(msgspec.Struct, frozen=True):
    """`length` layers over `group` ranks; position 0 belongs to rank `first`, so that the uneven rest of several series
    does not always meet the same ranks. Raises ValueError where a number is out of range."""

    length: int
    group: int
    prefetch: int = PREFETCH
    first: int = 0

    def __post_init__(self) -> None:
        if self.length < 1 or self.group < 1 or self.prefetch < 0 or not 0 <= self.first < self.group:
            raise ValueError(f"no window: {self}")

    @property
    def ahead(self) -> int:
        """How many steps before its own a layer is asked for. With `length - 1` the buffers hold the whole series."""
        return min(self.prefetch, self.length - 1)

    def position(self, step: int) -> int:
        return step % self.length

    def owner(self, position: int) -> int:
        """Rank that keeps the layer."""
        return (self.first + position) % self.group

    def buffers(self, rank: int) -> int:
        """Of `rank`: the most layers of others that it holds at a time."""
        return max(self.turn(step + self.ahead + 1, rank) - self.turn(step, rank) for step in range(self.length))

    def turn(self, step: int, rank: int) -> int:
        """How many layers of others `rank` has met before `step`. Modulo `buffers(rank)` this is where the step's layer
        lies on a rank that does not own it."""
        passes, position = divmod(step, self.length)
        return passes * (self.length - self._own(self.length, rank)) + position - self._own(position, rank)

    def _own(self, position: int, rank: int) -> int:
        """How many of the positions before this one `rank` owns."""
        return (position + self.group - 1 - (rank - self.first) % self.group) // self.group

    def asked_by(self, step: int) -> int:
        """The step that is asked for when `step` begins."""
        return step + self.ahead

    def opening(self, step: int) -> range:
        """Steps that must be under way before `step` begins, of a window that holds nothing."""
        return range(step, step + self.ahead)

    def owned(self, rank: int) -> tuple[int, ...]:
        """Positions that `rank` keeps: at most ceil(length / group), at least floor."""
        return tuple(position for position in range(self.length) if self.owner(position) == rank)

    def resident(self, rank: int) -> int:
        """Layers' worth of memory on `rank` with the rolling window."""
        return len(self.owned(rank)) + self.buffers(rank)

    @property
    def next_first(self) -> int:
        """`first` of the series that comes after."""
        return (self.first + self.length) % self.group
