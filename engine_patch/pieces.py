"""Sealed weights in pieces: in which order they come back from the master, and the canary, samples of each piece."""

from __future__ import annotations

from collections.abc import Sequence, Set

from engine_patch.bus import Bus, Range
from engine_patch.restoring import MemoryFault
from engine_patch.stages import Entry, Owners, entries_of, units_by_stage

UNIT = 2 << 20
"""Weights come back, and are checked, in pieces of so many bytes; of a chunk where that is smaller."""


class Pieces:
    """Piece i lies at `base + i * unit`, whenever its chunk is mapped. Not thread-safe."""

    def __init__(self, bus: Bus, base: int, chunk: int) -> None:
        """`base`: address of the weights' region; `chunk`: bytes of its chunks."""
        self._bus, self._base = bus, base
        self.unit = min(UNIT, chunk)
        self._each = chunk // self.unit
        self._all: tuple[int, ...] = ()
        self._samples: dict[int, int] = {}
        self.stages: tuple[tuple[int, ...], ...] = ()
        """Pieces that come back in each stage."""

    def seal(self, chunks: Sequence[int], blocks: Sequence[Range], owners: Owners) -> None:
        """The weights are what lies in these chunks of the region now. `blocks`, offset and length, live in it;
        `owners` says in which stages they shall come back."""
        self._all = tuple(chunk * self._each + k for chunk in chunks for k in range(self._each))
        self.stages = units_by_stage(self._all, self.unit, blocks, owners)
        self._samples = dict(zip(self._all, self._sample(self._all), strict=True))

    def entries(self, image: int, still: Set[int] = frozenset()) -> list[list[Entry]]:
        """Copies that bring each stage back from the address `image`, where all pieces lie end to end; none for chunks
        that hold their pieces `still`."""
        source = {piece: image + place * self.unit for place, piece in enumerate(self._all)}
        missing = ([piece for piece in stage if piece // self._each not in still] for stage in self.stages)
        return [entries_of(stage, self.unit, self._base, source) for stage in missing]

    def same(self, chunks: Set[int]) -> bool:
        """Whether the samples of all pieces in these chunks are as they were when it was sealed."""
        pieces = [piece for piece in self._all if piece // self._each in chunks]
        return self._sample(pieces) == [self._samples[piece] for piece in pieces]

    def check(self, stage: int) -> None:
        """The canary: samples of every piece against those taken when it was sealed. Raises `MemoryFault`."""
        pieces = self.stages[stage]
        wrong = [i for i, found in zip(pieces, self._sample(pieces), strict=True) if found != self._samples[i]]
        if wrong:
            raise MemoryFault(
                f"{len(wrong)} of {len(self._samples)} pieces of the weights came back wrong, the first is {wrong[0]}",
                remedy="the engine ends and is started again; if this comes back, check the machine's memory",
            )

    def _sample(self, pieces: Sequence[int]) -> list[int]:
        return self._bus.samples([self._base + piece * self.unit for piece in pieces], self.unit)
