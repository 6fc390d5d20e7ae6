"""Engines whose ranks have real stations, around caches of numpy: everything of a KV connector but vLLM."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np

from engine_patch.kv_bookings import OFFER, PARAM, Asked, Bookings, Shape
from tests.helpers.eventually import eventually
from tests.helpers.kv_peers import LOCAL
from tests.helpers.wires import TRUST
from transfer.kv.layout import KvLayout, cpu_packed
from transfer.kv.messages import Terms
from transfer.kv.plan import heads_of
from transfer.kv.reader import Span
from transfer.kv.station import Results, Station
from transfer.kv.supply import Group, Me

TERMS = Terms(first_s=600.0, lease_s=4.0, beat_s=0.05, patience_s=2.0, limit_s=30.0)
HEADS, LAYERS, BLOCKS, BLOCK, CELL = 4, 3, 16, 8, 192
FORM = "f" * 64


@dataclass
class Rank:
    """`memory[group][layer]` is [block, head, byte]."""

    heads: range
    memory: list[list[np.ndarray]]  # type: ignore[type-arg]
    station: Station


class Engine:
    """`tp` ranks, `groups` KV groups of equal layout; one scheduler (`bookings`)."""

    def __init__(self, stack: ExitStack, tp: int, groups: int = 1, terms: Terms = TERMS) -> None:
        self.tp, self.groups = tp, groups
        shape = Shape(FORM, (BLOCK,) * groups, HEADS, mla=False, blocks=BLOCKS * groups)
        self.bookings = Bookings(shape, TRUST)
        self.ranks = [self._rank(stack, rank, terms) for rank in range(tp)]
        self.bookings.doors = tuple(rank.station.door for rank in self.ranks)

    def _rank(self, stack: ExitStack, rank: int, terms: Terms) -> Rank:
        heads = heads_of(self.tp, HEADS, rank)
        layout = cpu_packed(BLOCKS, BLOCK, len(heads), CELL)
        caches = [[_cache(layout) for _ in range(LAYERS)] for _ in range(self.groups)]
        made = tuple(
            Group(layout, tuple(Span(each.ctypes.data, layout.extent) for each in layers)) for layers in caches
        )
        station = stack.enter_context(Station(Me(self.tp, rank, made), HEADS, TRUST, LOCAL, terms=terms))
        return Rank(heads, caches, station)

    # ---- what vLLM does

    def step(self) -> None:
        """The scheduler's orders reach each rank."""
        orders = self.bookings.orders()
        for rank in self.ranks:
            rank.station.perform(orders)

    def prefill(self, prompt: Sequence[int], blocks: Sequence[Sequence[int]], content: np.ndarray) -> str:  # type: ignore[type-arg]
        """Fill `blocks` (by group) with `content` [group, layer, block, head, byte], and offer them; the ticket."""
        for rank in self.ranks:
            for group, ids in enumerate(blocks):
                for layer in range(LAYERS):
                    rank.memory[group][layer][list(ids)] = content[group, layer][:, list(rank.heads)]
        asked = Asked(secrets.token_hex(4), prompt, (), {PARAM: OFFER})
        kept, params = self.bookings.finished(asked, whole=True, blocks=blocks)
        assert kept
        assert params is not None
        self.step()
        return str(params[PARAM])

    def decode(self, name: str, prompt: Sequence[int], ticket: str, blocks: Sequence[Sequence[int]], local: int) -> int:
        """Order what `ticket` offers beyond the `local` first tokens; how many those are."""
        asked = Asked(name, prompt, (), {PARAM: ticket})
        found = self.bookings.matched(asked, local)
        self.bookings.allocated(asked, found, blocks)
        self.step()
        return found

    async def results(self) -> list[Results]:
        """One for each rank, as soon as something has ended everywhere."""
        found = [Results() for _ in self.ranks]

        def more() -> bool:
            for rank, so_far in zip(self.ranks, found, strict=True):
                new = rank.station.collect()
                so_far.sent |= new.sent
                so_far.received |= new.received
                so_far.failed |= new.failed
                so_far.blocks |= new.blocks
            return all(each.sent or each.received for each in found)

        await eventually(more)
        return found

    def holds(self, blocks: Sequence[Sequence[int]], content: np.ndarray, first: int = 0) -> bool:  # type: ignore[type-arg]
        """Whether `blocks` hold `content` from block `first` on, on every rank."""
        return all(
            np.array_equal(
                rank.memory[group][layer][list(ids)[first:]], content[group, layer][first:, list(rank.heads)]
            )
            for rank in self.ranks
            for group, ids in enumerate(blocks)
            for layer in range(LAYERS)
        )


def _cache(layout: KvLayout) -> np.ndarray:  # type: ignore[type-arg]
    return np.zeros((layout.num_blocks, layout.heads, CELL), dtype=np.uint8)


def noise(groups: int, blocks: int) -> np.ndarray:  # type: ignore[type-arg]
    return np.random.default_rng(7).integers(0, 256, (groups, LAYERS, blocks, HEADS, CELL), dtype=np.uint8)


@contextmanager
def engine(tp: int, groups: int = 1, terms: Terms = TERMS) -> Iterator[Engine]:
    with ExitStack() as stack:
        yield Engine(stack, tp, groups, terms)
