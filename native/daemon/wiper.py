"""Chunks that change hands show nothing of their last owner: they are wiped while nobody waits for them, if possible.

Who maps gets blank chunks. Weights that a restore overwrites whole need none (`Map.overwritten`), so a switch leaves
the chunks of the engine that went to the weights of the one that comes, and wipes what is left when the device is
quiet. Only as many chunks as one process ever had for its KV are wiped at once: the next one will want as many. What
remains of a content that has a name is left alone beyond that: somebody may come back for it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from native._native import DriverError
from native.daemon.counters import Counters
from native.pool import Pool

log = logging.getLogger(__name__)

QUIET_S = 0.25
"""Without any change for so long, and no restore under way, everything soiled is wiped."""
BATCH_BYTES = 32 << 20
"""Wiped in one go where nobody waits: a few milliseconds, which is what somebody may have to wait for it."""
PARTS = 2
"""Threads that wipe a batch somebody waits for: two reach the memory bus's limit."""
RETRY_PAUSE = 1.0


class Wiper:
    """Of one device. `run` is to run all the time; `wipe` makes chunks zero and blocks, `restoring` says whether a
    restore is under way, `changed` is called when chunks became blank."""

    def __init__(
        self,
        pool: Pool,
        wipe: Callable[[tuple[int, ...]], None],
        restoring: Callable[[], bool],
        changed: Callable[[], None],
        counters: Counters,
    ) -> None:
        self._pool = pool
        self._wipe = wipe
        self._restoring = restoring
        self._changed = changed
        self._counters = counters
        self._batch = max(1, BATCH_BYTES // pool.chunk)
        self._wanted = 0
        self._turn = asyncio.Event()

    def ask(self, count: int) -> None:
        """Somebody waits for so many blank chunks."""
        self._wanted = max(self._wanted, count)
        self._turn.set()

    def look(self) -> None:
        """Something changed: chunks came back, or an operation began or ended."""
        self._turn.set()

    async def run(self) -> None:
        while True:
            quiet = not await self._wake()
            while chunks := self._pool.begin_wiping(self._due(quiet)):
                if not await self._make_blank(chunks):
                    await asyncio.sleep(RETRY_PAUSE)
                    break

    async def _wake(self) -> bool:
        """False: nothing changes, and there is something to wipe."""
        idle = self._pool.to_wipe > 0 and not self._restoring()
        try:
            async with asyncio.timeout(QUIET_S if idle else None):
                await self._turn.wait()
        except TimeoutError:
            return False
        self._turn.clear()
        return True

    def _due(self, quiet: bool) -> int:
        """How many chunks are to be wiped now."""
        if self._wanted > self._pool.blank:
            return self._wanted - self._pool.blank
        self._wanted = 0
        if self._restoring():
            return 0
        return self._batch if quiet else min(self._batch, max(0, self._pool.most_kv - self._pool.blank))

    async def _make_blank(self, chunks: tuple[int, ...]) -> bool:
        """False: it failed."""
        parts = PARTS if self._wanted else 1
        began = time.monotonic()
        work = [asyncio.to_thread(self._wipe, part) for i in range(parts) if (part := chunks[i::parts])]
        failures = [error for error in await asyncio.gather(*work, return_exceptions=True) if error is not None]
        self._pool.end_wiping(chunks, blank=not failures)
        for failure in failures:
            if not isinstance(failure, (DriverError, OSError)):
                raise failure
            log.warning("%d chunks cannot be wiped, trying again: %s", len(chunks), failure)
        if not failures:
            self._counters.took("wipe", time.monotonic() - began, len(chunks) * self._pool.chunk)
            self._changed()
        return not failures
