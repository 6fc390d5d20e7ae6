"""How a layer's weights get to the ranks that do not own it: two carriers, and which of them a group can use."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import msgspec
import torch
from vllm.distributed.parallel_state import get_tp_group

from engine_patch.family import boot_id
from engine_patch.memory import Hands
from engine_patch.sharded_linear import layers, rows
from engine_patch.sharded_linear.group import Group
from engine_patch.sharded_linear.options import Options
from engine_patch.sharded_linear.pages import Pages
from engine_patch.sharded_linear.rolling import Rolling, total
from engine_patch.sharded_linear.series import Series, Unshareable
from engine_patch.sharded_linear.tensors import put, tensors_of
from engine_patch.sharded_linear.windows import Paged, Windows

log = logging.getLogger("vllm.vnpu.sharded")

HOST = "host"
SMALLEST = 64 << 10
"""Bytes of a tensor that the allocation hook takes into an arena; smaller ones stay on every rank."""
ROOM = 2
"""Times its plain weight: what a layer takes at most while it is packed, of which it keeps one."""
SLACK = 1 << 20


class Carrier(Protocol):
    """One rank's end. Called from the worker's main thread; every rank makes the same calls in the same order."""

    def prepare(self, series: tuple[Series, ...], modules: dict[str, Any]) -> None:
        """The model is there, its weights are loaded, none is processed."""
        ...

    def placing(self, series: Series, layer: str, module: Any) -> Any:
        """A context around the processing of one layer."""
        ...

    def loaded(self) -> None:
        """All layers are processed."""
        ...

    def meet(self, here: bool) -> bool:
        """This rank's pages are here, or not. Returns whether all ranks' are."""
        ...

    def ready(self) -> None:
        """All weights are back on this rank, and all ranks have met."""
        ...

    def still(self) -> None:
        """Nothing moves until `ready`: what this rank owns is looked at."""
        ...

    def part(self) -> None:
        """This rank's pages are about to go. Idempotent."""
        ...

    @property
    def bytes(self) -> int:
        """Of pages of this rank's own beside its weights and KV."""
        ...


class _Facts(msgspec.Struct, frozen=True):
    """What ranks must have in common to map one another's pages."""

    boot: str
    socket: tuple[int, int]
    driver: str
    chunk: int


def make(options: Options, hands: Hands, group: Group, engine: str, socket: str, *, eager: bool) -> Carrier:
    """The carrier for this group: asked for, or found out together.

    Raises:
        Unshareable: this group cannot use the one that is asked for.
        OutOfStep: a rank did not come.
    """
    status = Path(socket).stat()
    driver, chunk = hands.driver.name, hands.weights.chunk
    mine = msgspec.msgpack.encode(_Facts(boot_id(), (status.st_dev, status.st_ino), driver, chunk))
    alike = len(set(group.exchange(mine, "memory"))) == 1 and driver == HOST
    if options.carrier == "mapped" and not alike:
        raise Unshareable(
            "sharded_linear: these ranks do not share host memory through one node daemon",
            remedy="give carrier: broadcast, or auto",
        )
    if options.carrier == "mapped" or (options.carrier == "auto" and alike):
        log.info("shared layers are mapped")
        return Mapped(Pages(hands, group, engine), group if eager else None)
    if not eager:
        raise Unshareable(
            "sharded_linear: layers that are broadcast need eager mode: in a compiled graph nobody waits for them",
            remedy="give enforce_eager: true",
        )
    log.info("shared layers are broadcast, %d ahead", options.prefetch)
    return Broadcasting(group, options.deadline_s, Paged(hands))


class Mapped:
    """See `pages`, and `rows` for how these layers are multiplied."""

    def __init__(self, pages: Pages, group: Group | None) -> None:
        """`group`: to multiply by rows; None: every rank multiplies by all of a layer, as a compiled graph does."""
        self._pages = pages
        self._group = group
        self._by_rows: set[str] = set()

    def prepare(self, series: tuple[Series, ...], modules: dict[str, Any]) -> None:
        if self._group is None:
            return
        names = [name for one in series for name in one.layers]
        self._by_rows = {name for name in names if rows.divides(modules[name], self._group.size)}
        for name in self._by_rows:
            layers.plain_kernel(modules[name])  # `placing` packs it
        log.info("%d of %d layers are multiplied by rows", len(self._by_rows), len(names))

    @contextmanager
    def placing(self, series: Series, layer: str, module: Any) -> Iterator[None]:
        plain = sum(tensor.nbytes for tensor in tensors_of(module).values())
        with self._pages.placing(layer, series.owner(layer), ROOM * plain + SLACK) as arena:
            yield
            if layer in self._by_rows and self._group is not None:
                rows.split(module, self._group.size, self._group.me, get_tp_group().all_gather)
            for name, tensor in tensors_of(module).items():
                inside = arena.base <= tensor.untyped_storage().data_ptr() < arena.base + arena.reserved
                if tensor.nbytes >= SMALLEST and not inside:
                    moved = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
                    put(module, name, moved.copy_(tensor))

    def loaded(self) -> None:
        self._pages.loaded()

    def meet(self, here: bool) -> bool:
        return self._pages.meet(here)

    def ready(self) -> None:
        pass

    def still(self) -> None:
        pass

    def part(self) -> None:
        self._pages.part()

    @property
    def bytes(self) -> int:
        return 0


class Broadcasting:
    """See `rolling`. `windows`: pages for the buffers, which nobody saves or brings back."""

    def __init__(self, group: Group, deadline_s: float, windows: Windows) -> None:
        self._group = group
        self._deadline_s = deadline_s
        self._windows = windows
        self._rolling: dict[Series, Rolling] = {}

    def prepare(self, series: tuple[Series, ...], modules: dict[str, Any]) -> None:
        for one in series:
            self._rolling[one] = Rolling(one, self._group.me, self._group.line(), self._deadline_s)
            for name in one.layers:
                layers.plain_kernel(modules[name])

    @contextmanager
    def placing(self, series: Series, layer: str, module: Any) -> Iterator[None]:
        yield
        self._rolling[series].adopt(series.layers.index(layer), module)

    def loaded(self) -> None:
        rolling = self._rolling.values()
        with self._windows.allocating(sum(each.window_bytes + SLACK for each in rolling)):
            for one in rolling:
                one.open()
        log.info("%d bytes of shared layers and windows here", total(list(self._rolling.values())))

    def meet(self, here: bool) -> bool:
        together = all(text == b"1" for text in self._group.exchange(b"1" if here else b"0", "pages"))
        if together:
            self._windows.map()
        return together

    def ready(self) -> None:
        for one in self._rolling.values():
            one.fill()

    def still(self) -> None:
        for one in self._rolling.values():
            one.drain()

    def part(self) -> None:
        self.still()
        self._windows.drop()

    @property
    def bytes(self) -> int:
        return self._windows.bytes
