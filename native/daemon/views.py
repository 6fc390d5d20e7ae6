"""Views: chunks that their owner lets other processes map read-only for a while. PURE book-keeping.

A view is charged to its owner alone. Before its chunks can be anybody else's, it is revoked: nobody opens it any more,
who has it open is asked to let go, and who does not is killed. Until then its chunks stay where they are.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field

from native.journal import KeptView


class NoView(Exception):
    """There is no such view for this process."""


@dataclass(eq=False, slots=True)
class View:
    """`owner` and `holders` are numbers of processes; `to` is the engine that may open it, empty: any."""

    id: int
    device: str
    owner: int
    chunks: tuple[int, ...]
    to: str = ""
    revoked: bool = False
    holders: set[int] = field(default_factory=set)

    @property
    def kept(self) -> KeptView:
        return KeptView(self.id, self.owner, self.chunks, tuple(sorted(self.holders)))


class Views:
    """All views of the node."""

    def __init__(self) -> None:
        self._views: dict[int, View] = {}

    def __iter__(self) -> Iterator[View]:
        return iter(tuple(self._views.values()))

    def offer(self, device: str, owner: int, chunks: Iterable[int], to: str = "") -> View:
        view = View(secrets.randbits(62) + 1, device, owner, tuple(dict.fromkeys(chunks)), to)
        self._views[view.id] = view
        return view

    def recall(self, device: str, kept: KeptView, alive: Collection[int]) -> View | None:
        """A view of an earlier life of the daemon, revoked, where living processes may still have it mapped."""
        holders = set(kept.holders) & set(alive)
        if not holders:
            return None
        view = View(kept.id, device, kept.owner, kept.chunks, revoked=True, holders=holders)
        self._views[view.id] = view
        return view

    def open(self, number: int, process: int, engine: str) -> View:
        """Raises NoView: unknown, revoked, or for another engine."""
        view = self._views.get(number)
        if view is None or view.revoked or view.to not in ("", engine) or view.owner == process:
            raise NoView(f"no view {number} for {engine}: it was revoked, or offered to another")
        view.holders.add(process)
        return view

    def close(self, number: int, process: int) -> None:
        """The process has it mapped no more. Idempotent."""
        if (view := self._views.get(number)) is not None:
            view.holders.discard(process)
            self._end(view)

    def get(self, number: int) -> View | None:
        return self._views.get(number)

    def of(self, owner: int, chunks: Collection[int] | None = None) -> tuple[View, ...]:
        """Views of this owner that touch one of `chunks` (None: any)."""
        wanted = None if chunks is None else set(chunks)
        mine = (view for view in self._views.values() if view.owner == owner)
        return tuple(view for view in mine if wanted is None or not wanted.isdisjoint(view.chunks))

    def touching(self, device: str, chunks: Collection[int]) -> tuple[View, ...]:
        """Views of any owner, living or dead, that show one of `chunks`."""
        wanted = set(chunks)
        return tuple(v for v in self._views.values() if v.device == device and not wanted.isdisjoint(v.chunks))

    def viewers(self, device: str) -> dict[int, frozenset[int]]:
        """By chunk of the device: which processes may have it mapped."""
        found: dict[int, frozenset[int]] = {}
        for view in self._views.values():
            if view.device == device and view.holders:
                for chunk in view.chunks:
                    found[chunk] = found.get(chunk, frozenset()) | view.holders
        return found

    def revoke(self, view: View) -> frozenset[int]:
        """Nobody opens it any more; returns who has it open."""
        view.revoked = True
        self._end(view)
        return frozenset(view.holders)

    def forget(self, process: int) -> None:
        """The process is dead: it has nothing mapped."""
        for view in tuple(self._views.values()):
            view.holders.discard(process)
            self._end(view)

    def kept(self, device: str) -> tuple[KeptView, ...]:
        """What is to be persisted: views that somebody may have mapped."""
        return tuple(view.kept for view in self._views.values() if view.device == device and view.holders)

    def _end(self, view: View) -> None:
        if view.revoked and not view.holders:
            self._views.pop(view.id, None)
