"""Engines whose ranks have real stations, around caches of numpy: everything of a KV connector but vLLM."""

from __future__ import annotations

import mmap
import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np

from engine_patch.kv_bookings import OFFER, PARAM, Asked, Bookings, Shape
from tests.helpers.eventually import eventually
from tests.helpers.kv_peers import LOCAL
from tests.helpers.wires import TRUST
from transfer.errors import TransferError
from transfer.kv.layout import cpu_packed
from transfer.kv.messages import Terms
from transfer.kv.near import Near
from transfer.kv.plan import heads_of
from transfer.kv.reader import Span
from transfer.kv.station import Results, Station
from transfer.kv.supply import Group, Me
from transfer.netloader.ways import Loan
from transfer.netloader.wire import Lent
from transfer.transports.window import Window

TERMS = Terms(first_s=600.0, lease_s=4.0, beat_s=0.05, patience_s=2.0, limit_s=30.0)
HEADS, LAYERS, BLOCKS, BLOCK, CELL = 4, 3, 16, 8, 192
FORM = "f" * 64


@dataclass
class Rank:
    """`memory[group][layer]` is [block, head, byte]."""

    heads: range
    memory: list[list[np.ndarray]]  # type: ignore[type-arg]
    station: Station


class Node:
    """What the node daemon does with views: `offer` names pages, `borrow` maps them, `revoke` takes them back."""

    def __init__(self, name: str = "here") -> None:
        self.name = name
        self.views: dict[int, tuple[int, int]] = {}
        self.windows: list[tuple[int, Window]] = []

    def near(self, descriptor: int, memory: np.ndarray) -> Near:  # type: ignore[type-arg]
        """Of a rank whose cache is `memory`."""
        mine: list[int] = []

        def place(address: int, length: int) -> int | None:
            return address - memory.ctypes.data

        def lend(lost: int) -> Loan:
            if not mine or mine[-1] == lost:
                mine.append(len(self.views) + 1)
                self.views[mine[-1]] = (descriptor, memory.nbytes)
            return Loan(Lent(mine[-1]), place)

        return Near(self.name, lend, self.borrow)

    def borrow(self, lent: Lent) -> Window:
        if lent.view not in self.views:
            raise TransferError("no such view")
        self.windows.append((lent.view, Window([self.views[lent.view]])))
        return self.windows[-1][1]

    def revoke(self) -> None:
        """All of them, as when the pages go; the daemon forgets them."""
        for _, window in self.windows:
            window.close()
        self.views = {view + 1000: pages for view, pages in self.views.items()}


class Engine:
    """`tp` ranks, `groups` KV groups of equal layout; one scheduler (`bookings`). `node`: its ranks share memory there;
    `fabric`: they read through Mooncake."""

    def __init__(
        self,
        stack: ExitStack,
        tp: int,
        groups: int = 1,
        terms: Terms = TERMS,
        node: Node | None = None,
        fabric: bool = False,
    ) -> None:
        self.tp, self.groups, self.node, self.fabric = tp, groups, node, fabric
        shape = Shape(FORM, (BLOCK,) * groups, HEADS, mla=False, blocks=BLOCKS * groups)
        self.bookings = Bookings(shape, TRUST)
        self.ranks = [self._rank(stack, rank, terms) for rank in range(tp)]
        self.bookings.doors = tuple(rank.station.door for rank in self.ranks)

    def _rank(self, stack: ExitStack, rank: int, terms: Terms) -> Rank:
        heads = heads_of(self.tp, HEADS, rank)
        layout = cpu_packed(BLOCKS, BLOCK, len(heads), CELL)
        descriptor, memory = _shared(stack, self.groups * LAYERS * layout.extent)
        shape = (self.groups, LAYERS, layout.num_blocks, layout.heads, CELL)
        caches = [list(group) for group in memory[: self.groups * LAYERS * layout.extent].reshape(shape)]
        made = tuple(
            Group(layout, tuple(Span(each.ctypes.data, layout.extent) for each in layers)) for layers in caches
        )
        station = stack.enter_context(
            Station(Me(self.tp, rank, made), HEADS, TRUST, LOCAL, terms=terms, fabric=self.fabric)
        )
        if self.node is not None:
            station.share(self.node.near(descriptor, memory))
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


def _shared(stack: ExitStack, size: int) -> tuple[int, np.ndarray]:  # type: ignore[type-arg]
    """Zeros that another process could map, mapped for as long as anybody refers to them."""
    descriptor = os.memfd_create("cache")
    stack.callback(os.close, descriptor)
    whole = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
    os.ftruncate(descriptor, whole)
    return descriptor, np.frombuffer(mmap.mmap(descriptor, whole), dtype=np.uint8)


def noise(groups: int, blocks: int) -> np.ndarray:  # type: ignore[type-arg]
    return np.random.default_rng(7).integers(0, 256, (groups, LAYERS, blocks, HEADS, CELL), dtype=np.uint8)


@contextmanager
def engine(
    tp: int, groups: int = 1, terms: Terms = TERMS, node: Node | None = None, *, fabric: bool = False
) -> Iterator[Engine]:
    with ExitStack() as stack:
        yield Engine(stack, tp, groups, terms, node, fabric)
