"""The host master of one engine's sealed weights: opened, filled anew out of the pages, let go of."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from engine_patch.bus import Bus, Range
from engine_patch.host_memory import Mapping, close_master, new_master, open_master
from engine_patch.restoring import MemoryFault
from engine_patch.stages import end_to_end
from native.client import Client
from native.link import DaemonRefused
from native.protocol import Code

log = logging.getLogger("vllm.vnpu.memory")

CALL_S = 50.0
"""Longest wait for the daemon within an operation: under the operation's own limit."""
FILL_S = 120.0
FILLS = 3
"""How often a master is filled and found gone again (the daemon restarts) before the engine gives up."""


class Master:
    """`memory`: where it is mapped, None while it is not. Not thread-safe."""

    def __init__(self, client: Client, bus: Bus) -> None:
        self._client, self._bus = client, bus
        self.memory: Mapping | None = None
        self.copied_out = 0
        """Bytes that were copied to new masters."""

    def open(self, digest: str) -> bool:
        """Map what the daemon has under this digest; False: it has none. Raises DaemonUnavailable, DaemonRefused."""
        memory = open_master(self._client, digest, CALL_S)
        if memory is not None:
            self._bus.lock(memory)
            self.memory = memory
        return memory is not None

    def make(self, digest: str, ranges: Sequence[Range]) -> None:
        """The daemon's, or else a new one out of the pages that are mapped at `ranges`, end to end.

        Raises:
            DaemonRefused: NO_SPACE: there is no room in the node's memory for masters.
            DaemonUnavailable: the daemon is away or silent.
            MemoryFault: what was sealed is gone, time and again.
        """
        for _ in range(FILLS):
            if self.open(digest):
                return
            self._fill(digest, ranges)
        raise MemoryFault("the host master that was just sealed is gone", remedy="see the daemon's log")

    def let_go(self, digest: str) -> None:
        """Unmap it and tell the daemon, which may evict it. Raises DaemonUnavailable: unmapped all the same."""
        memory, self.memory = self.memory, None
        if memory is not None:
            self._bus.unlock(memory)
            close_master(self._client, digest, memory, CALL_S)

    def _fill(self, digest: str, ranges: Sequence[Range]) -> None:
        size = sum(length for _, length in ranges)
        filled = new_master(self._client, size, FILL_S)
        try:
            self._bus.lock(filled)
            self._bus.save([(to, at, length) for at, to, length in end_to_end(ranges, filled.address)])
        finally:
            self._bus.unlock(filled)
            filled.close()
        self.copied_out += size
        try:
            self._client.seal_master(digest)
        except DaemonRefused as refused:
            if refused.code is not Code.NOT_FOUND:  # that: the daemon was restarted meanwhile
                raise
            log.warning("the host master was lost before it was sealed: %s", refused)
