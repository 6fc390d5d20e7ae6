"""Blocks of an engine of the same machine: its pages are mapped here through the node daemon, and copied once, from
where they lie to where they belong. Asked for on the connection; whoever gets nothing reads over it as before.

A view ends with the source's sleep. Its memory is gone from here before anybody else has the pages, and after waking up
the source lends another.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Annotated, NamedTuple

import msgspec

from transfer.errors import TransferError
from transfer.kv.mapped import MappedReader, Part
from transfer.kv.reader import Span
from transfer.netloader.ways import Loan, Open
from transfer.netloader.wire import Lent
from transfer.transports.window import Window

log = logging.getLogger("vllm.vnpu.transfer")

AGAIN_S = 10.0
"""Who got nothing asks again after so long: the source may have been about to sleep, or the daemon away."""

_View = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]


class Near(NamedTuple):
    """How this process shares memory with others of `machine`, the daemon's name of it. `lend(lost)`: a view of our own
    cache, but not the view `lost`; `borrow`: maps others'. Both from any thread."""

    machine: str
    lend: Callable[[int], Loan | None]
    borrow: Open


class Borrow(msgspec.Struct, frozen=True, tag=True):
    """Lend me your cache: I can map what the daemon of `machine` owns. `lost`: a view that it knows no more."""

    machine: Annotated[str, msgspec.Meta(min_length=1, max_length=512)]
    lost: _View = 0


class Region(msgspec.Struct, frozen=True, array_like=True):
    """Where region `handle` lies in the view."""

    handle: Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)]
    place: Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
    size: Annotated[int, msgspec.Meta(ge=0, lt=1 << 48)]


class Shown(msgspec.Struct, frozen=True, tag=True):
    """View 0: nothing is lent, just now or to that machine."""

    view: _View
    regions: Annotated[tuple[Region, ...], msgspec.Meta(max_length=1 << 16)] = ()


def lend(near: Near | None, request: Borrow, regions: Mapping[int, Span]) -> Shown:
    """The source's answer: all of `regions`, or nothing."""
    if near is None or request.machine != near.machine:
        return Shown(0)
    loan = near.lend(request.lost)
    if loan is None or not loan.lent.view:
        return Shown(0)
    found = []
    for handle, span in regions.items():
        place = loan.place(span.address, span.size)
        if place is None:
            return Shown(0)
        found.append(Region(handle, place, span.size))
    return Shown(loan.lent.view, tuple(found))


class Neighbour:
    """What one prefill rank has lent, for all who read from it here. Thread-safe."""

    def __init__(self, near: Near, name: str, clock: Callable[[], float] = time.monotonic) -> None:
        """`name`: for the log."""
        self._near, self._name, self._clock = near, name, clock
        self._turn = threading.Lock()
        self._window: Window | None = None
        self._reader: MappedReader | None = None
        self._lost = 0
        self._after = 0.0
        self._closed = False

    def reader(self, ask: Callable[[Borrow], Shown]) -> MappedReader | None:
        """Of memory that is mapped, where there is some; `ask` asks the source.

        Raises:
            TransferError: it could not be asked.
        """
        with self._turn:
            if self._window is not None and self._window.is_open:
                return self._reader
            if self._closed or self._clock() < self._after:
                return None
            self._after = self._clock() + AGAIN_S
            shown = ask(Borrow(self._near.machine, self._lost))
            return self._map(shown) if shown.view else None

    def _map(self, shown: Shown) -> MappedReader | None:
        try:
            window = self._near.borrow(Lent(view=shown.view))
        except TransferError as error:
            log.info("KV blocks of %s come over TCP: %s", self._name, error)
            self._lost = shown.view
            return None
        try:
            parts = {region.handle: Part(region.place, region.size) for region in shown.regions}
            self._reader = MappedReader(window, parts)
        except TransferError as error:
            window.close()
            log.warning("KV blocks of %s come over TCP: %s", self._name, error)
            return None
        self._window, self._after = window, 0.0
        log.info("KV blocks of %s are mapped here", self._name)
        return self._reader

    def close(self) -> None:
        """Nobody may be reading. Idempotent."""
        with self._turn:
            self._closed = True
            if self._window is not None:
                self._window.close()
