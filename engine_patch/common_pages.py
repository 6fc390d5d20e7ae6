"""Weights of one content that several engines of a device have in the same pages, read-only (docs/memory.md, "Shared
weights"). The daemon knows who has them; this is one engine's end of it, within its operations.

An engine offers its pages only once it is known to leave them alone: some library might have put a scratch buffer
among the weights. So the first time its pages are to leave after requests have run, their content is compared with
what was sealed; after that they are read-only for itself too, whenever they are offered, and a write ends the process
instead of another engine's answers. Both are done only where another engine of the device has that content: who is
alone pays a question to the daemon for each switch, beside the copy of its restore, so that the next one of the device
does not wait for it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from engine_patch.bus import Bus
from engine_patch.region import Region
from engine_patch.restoring import MemoryFault
from native._native import DriverError
from native.client import Client
from native.link import DaemonError, DaemonRefused

log = logging.getLogger("vllm.vnpu.memory")

OFFER_S = 2.0
"""Longest wait for the daemon with what a switch can do without."""


class CommonPages:
    """Of one engine's weights. Not thread-safe."""

    def __init__(self, client: Client, bus: Bus, weights: Region, *, allowed: bool) -> None:
        """Not `allowed`: the engine neither offers nor joins."""
        self._client, self._bus, self._weights = client, bus, weights
        self._shares = allowed and bus.shares
        self._still: bool | None = None
        self._others: bool | None = None
        """Whether others would share them, as of the last `ask`."""
        self._joined = ""

    @property
    def joined(self) -> bool:
        """The weights lie in pages that another engine offered."""
        return bool(self._joined)

    def unproven(self, digest: str) -> bool:
        """Whether it is not known yet if anything is written to the weights, and others would share them if not; asked
        now, unless `ask` was called in this life of the pages."""
        if self._still is not None:
            return False
        others, self._others = self._others, None
        return self._wanted(digest) if others is None else others

    def ask(self, digest: str) -> None:
        """Within a restore, for `unproven` when the pages leave again. Who comes between then and now is found by the
        restore after."""
        self._others = self._wanted(digest) if self._still is None else None

    def prove(self, same: bool) -> None:
        """`same`: requests have run, and the weights are what was sealed."""
        self._still = same
        if not same:
            log.warning("the weights have changed since they were loaded: their pages are not shared")

    def join(self, digest: str, indices: Sequence[int], timeout_s: float) -> bool:
        """Map the pages in which another engine has this content, for the chunks `indices` of the region. False:
        nobody offers it, or it cannot be mapped; nothing is mapped then.

        Raises:
            DaemonRefused: no operation is open.
            DaemonUnavailable: the daemon is away or silent.
        """
        if not self._shares:
            return False
        self._joined = digest  # `part` tells the daemon, also where its answer is lost
        try:
            chunks = self._client.open_share(self._weights.device, digest, timeout_s)
        except DaemonRefused:
            self._joined = ""
            raise
        if chunks is None:
            self._joined = ""
            return False
        try:
            if len(chunks) == len(indices):
                self._weights.join(indices, chunks)
                return True
            log.warning("the pages of %s are %d, not %d: they are not shared", digest, len(chunks), len(indices))
        except DriverError as error:
            log.warning("pages that another engine shares cannot be mapped: %s", error)
        finally:
            for chunk in chunks:
                chunk.close()
        self.part(timeout_s)
        return False

    def offer(self, digest: str) -> None:
        """Let others join these pages, where they are this engine's own and left alone. They are read-only from now on,
        until they leave: before the daemon knows, and also where it never does."""
        if self.joined or not self._still or not self._weights.chunks or not self._wanted(digest):
            return
        try:
            self._bus.protect(self._weights.ranges(self._weights.indices))
            self._client.offer_share(self._weights.device, digest, self._weights.chunks, OFFER_S)
        except (MemoryFault, DaemonError) as error:
            log.warning("the weights' pages are not offered to others: %s", error)

    def _wanted(self, digest: str) -> bool:
        if not self._shares:
            return False
        try:
            return self._client.share_wanted(self._weights.device, digest, OFFER_S)
        except DaemonError as error:
            log.warning("it is not known who else has these weights: %s", error)
            return False

    def part(self, timeout_s: float) -> None:
        """Unmap what was joined and tell the daemon. Idempotent.

        Raises:
            DaemonUnavailable: the daemon is away or silent: unmapped here, and told by the next `part`.
        """
        if self._joined:
            self._weights.part()
            self._client.close_share(self._weights.device, self._joined, timeout_s)
            self._joined = ""
