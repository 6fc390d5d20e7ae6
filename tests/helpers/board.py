"""A dictionary in the place of agents and etcd: what engines say they have of weights, and who finds it."""

from __future__ import annotations

import threading

from coordinator.core.model import Seed
from engine_patch.desk import Desk
from engine_patch.seeds import Found, matches
from engine_patch.tensors import Table
from tests.helpers.weights import Rank


class Board(Desk):
    """A desk that all engines share."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.seeds: dict[tuple[str, str], Seed] = {}
        self.history: list[tuple[str, Seed]] = []

    def of(self, engine: str) -> Desk:
        board = self

        class Mine(Desk):
            def __init__(self) -> None: ...

            def find(
                self, *, fingerprint: str = "", family: str = "", checkpoint: str = "", kin: str = ""
            ) -> tuple[Found, ...]:
                with board._lock:
                    return tuple(
                        Found(name, key, seed)
                        for (name, key), seed in board.seeds.items()
                        if matches(key, seed, fingerprint, family, checkpoint, kin)
                    )

            def publish(self, fingerprint: str, seed: Seed) -> None:
                with board._lock:
                    board.seeds[engine, fingerprint] = seed
                    board.history.append((engine, seed))

        return Mine()

    def seed(self, engine: str) -> Seed | None:
        with self._lock:
            return next((seed for (name, _), seed in self.seeds.items() if name == engine), None)


def table(rank: Rank) -> Table:
    return Table(rank.extents, tuple(rank.addresses))
