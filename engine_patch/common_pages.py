"""Weights of one content that several engines of a device have in the same pages, read-only (docs/memory.md, "Shared
weights"). The daemon knows who has them; this is one engine's end of it, within its operations.

An engine that starts joins too: it holds the pages while its model is built, and moves into them when it is known which
of its own it needs (`hold`, `move_in`).

An engine offers its pages only once it is known to leave them alone: some library might have put a scratch buffer
among the weights. So the first time its pages are to leave after requests have run, their content is compared with
what was sealed; after that they are read-only for itself too, whenever they are offered, and a write ends the process
instead of another engine's answers. Both are done only where another engine of the device has that content: who is
alone pays a question to the daemon for each switch, beside the copy of its restore, so that the next one of the device
does not wait for it.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple

from engine_patch.bus import Bus, Range
from engine_patch.region import Region
from engine_patch.restoring import MemoryFault
from native._native import DriverError
from native.client import Chunk, Client
from native.link import DaemonError, DaemonRefused
from transfer.transports.window import Window

log = logging.getLogger("vllm.vnpu.memory")

OFFER_S = 2.0
"""Longest wait for the daemon with what a switch can do without."""


class Held(NamedTuple):
    """Pages of another engine, for who starts: for the chunks `indices` of its region. `live`: what of them it needs,
    as (address, length)."""

    indices: tuple[int, ...]
    live: tuple[Range, ...]
    chunks: tuple[Chunk, ...]

    def close(self) -> None:
        for chunk in self.chunks:
            chunk.close()


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
        self._held: Held | None = None

    @property
    def joined(self) -> str:
        """Digest of the pages that another engine offered, and that the weights lie in; empty: they do not."""
        return self._joined

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
        chunks = self._open(digest, timeout_s)
        if chunks is None:
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

    def _open(self, digest: str, timeout_s: float) -> tuple[Chunk, ...] | None:
        if not self._shares:
            return None
        self._joined = digest  # `part` tells the daemon, also where its answer is lost
        try:
            chunks = self._client.open_share(self._weights.device, digest, timeout_s)
        except DaemonRefused:
            self._joined = ""
            raise
        if chunks is None:
            self._joined = ""
        return chunks

    def hold(self, digest: str, indices: Sequence[int], live: Sequence[Range], timeout_s: float) -> bool:
        """Within a start: the pages in which another engine has this content stay from now on, for `move_in`.
        `indices`: the chunks of the region whose content they are; `live`: what of it is needed, as (address, length).
        False: nobody offers it.

        Raises:
            DaemonUnavailable: the daemon is away or silent.
        """
        chunks = self._open(digest, timeout_s)
        if chunks is None:
            return False
        self._held = Held(tuple(indices), tuple(live), chunks)
        if len(chunks) == len(indices):
            return True
        log.warning("the pages of %s are %d, not %d: they are not shared", digest, len(chunks), len(indices))
        self.let_go(timeout_s)
        return False

    def let_go(self, timeout_s: float) -> None:
        """Of what is held, if anything is. Raises as `part`."""
        if self._held is not None:
            self._held.close()
            self._held = None
            self.part(timeout_s)

    def move_in(self, timeout_s: float) -> None:
        """Where pages are held, they take the place of the region's own. Where that cannot be, their content is copied.

        Raises:
            DaemonUnavailable: the daemon is away or silent.
            DaemonRefused: no operation is open.
            DriverError: nothing can be mapped.
            TransferError: what is held cannot be read.
        """
        held = self._held
        if held is None:
            return
        moved = False
        if self._weights.indices == held.indices:
            self._weights.drop(held.indices, timeout_s)
            try:
                self._weights.join(held.indices, held.chunks)
                moved = True
            except DriverError as error:
                log.warning("pages that another engine shares cannot be mapped, they are copied: %s", error)
                self._weights.map(held.indices, timeout_s)
        else:
            log.warning("the model lies in other chunks than when it was built: the other engine's are copied")
        if moved:
            held.close()
            self._held = None
        else:
            self._copy(held)
            self.let_go(timeout_s)

    def _copy(self, held: Held) -> None:
        chunk = self._weights.chunk
        window = Window([(one.fd, one.size) for one in held.chunks])
        try:
            with window.reading() as base:
                for address, length in held.live:
                    index, within = divmod(address - self._weights.base, chunk)
                    ctypes.memmove(address, base + held.indices.index(index) * chunk + within, length)
        finally:
            window.close()

    def offer_now(self, digest: str, same: Callable[[], bool]) -> bool:
        """Outside a switch: let one who starts on this device join. `same`: whether the weights are still what was
        sealed, now that requests have run; asked where it is not known. False: they are not offered."""
        if self.joined:
            return True  # by whoever has them
        if not self._shares or not self._weights.chunks:
            return False
        if self._still is None:
            self.prove(same())
        return self._still is True and self._offer(digest)

    def offer(self, digest: str) -> None:
        """Let others join these pages, where they are this engine's own and left alone. They are read-only from now on,
        until they leave: before the daemon knows, and also where it never does."""
        if not self.joined and self._still and self._weights.chunks and self._wanted(digest):
            self._offer(digest)

    def _offer(self, digest: str) -> bool:
        try:
            self._bus.protect(self._weights.ranges(self._weights.indices))
            self._client.offer_share(self._weights.device, digest, self._weights.chunks, OFFER_S)
        except (MemoryFault, DaemonError) as error:
            log.warning("the weights' pages are not offered to others: %s", error)
            return False
        return True

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
