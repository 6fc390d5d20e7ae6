"""Tells etcd, by the agent's desk, what one rank serves: at once when that is said to have changed, and what changes by
itself (progress, clients) every half second."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from coordinator.core.model import Seed
from engine_patch.desk import Desk
from transfer.errors import TransferError

log = logging.getLogger("vllm.vnpu.netloader")

TELL_S = 0.5
"""Progress and clients are told so often at most."""


class SeedNews:
    """Of a thread of its own, from the start."""

    def __init__(self, desk: Desk, rank: int, now: Callable[[], tuple[str, Seed | None]]) -> None:
        """`now`: the fingerprint of the weights, and the seed as of now (None: nothing is told)."""
        self._desk = desk
        self._rank = rank
        self._now = now
        self._told: Seed | None = None
        self._changed = threading.Event()
        self._closed = False

    def start(self) -> None:
        threading.Thread(target=self._keep_telling, name="vnpu-seed", daemon=True).start()

    def changed(self) -> None:
        """Do not wait."""
        self._changed.set()

    def close(self) -> None:
        """Nothing is told any more."""
        self._closed = True
        self._changed.set()

    def _keep_telling(self) -> None:
        while not self._closed:
            self._changed.wait(TELL_S)
            self._changed.clear()
            fingerprint, seed = self._now()
            if seed is None or seed == self._told:
                continue
            try:
                self._desk.publish(fingerprint, seed)
                self._told = seed
            except TransferError as error:
                log.warning("what rank %d serves cannot be told: %s", self._rank, error)
