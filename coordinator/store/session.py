"""A lease kept alive: what is put on it stands while this process lives and is heard (after etcd's `session.go`).

A session decides nothing about memory: losing it ends the right to begin an operation, never an operation that has
begun (PROTOCOL rule 7).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

from coordinator.errors import LeaseLost, StoreError
from coordinator.store.base import Store

log = logging.getLogger(__name__)

TTL_S = 5
KEEP_ALIVES_PER_TTL = 5
REVOKE_TIMEOUT_S = 2.0


class Session:
    """`lease` carries the keys; `lost` is set once it is gone, or once nobody can say that it is not."""

    def __init__(self, store: Store, lease: int, ttl: float, sent: float, clock: Callable[[], float]) -> None:
        self.lease = lease
        self.ttl = ttl
        self.deadline = sent + ttl
        self.lost = asyncio.Event()
        self._store = store
        self._clock = clock

    @property
    def alive(self) -> bool:
        """Is the lease certainly alive now? Right after a pause of the process too, before any task could run."""
        return not self.lost.is_set() and self._clock() < self.deadline

    async def keep(self, healthy: Callable[[], bool]) -> None:
        """Renew until lost. The deadline counts from when the last renewal that succeeded was *sent*."""
        try:
            while self.alive:
                left = self.deadline - self._clock()
                await asyncio.sleep(min(self.ttl / KEEP_ALIVES_PER_TTL, left))
                if healthy():
                    await self._renew()
        except Exception:
            self._lose("nobody keeps it alive any more")
            raise
        if not self.lost.is_set():
            self._lose("no keep-alive was answered in time")

    async def _renew(self) -> None:
        sent = self._clock()
        try:
            async with asyncio.timeout(max(self.deadline - sent, 0)):
                self.ttl = await self._store.keep_alive(self.lease)
            self.deadline = sent + self.ttl
        except LeaseLost:
            self._lose("etcd ended it")
        except (StoreError, TimeoutError) as error:
            log.warning("keep-alive of lease %x failed: %s", self.lease, error or "no answer before its deadline")

    def _lose(self, cause: str) -> None:
        log.warning("lease %x is lost: %s", self.lease, cause)
        self.lost.set()


@asynccontextmanager
async def open_session(
    store: Store,
    ttl: int = TTL_S,
    *,
    healthy: Callable[[], bool] = lambda: True,
    clock: Callable[[], float] | None = None,
) -> AsyncIterator[Session]:
    """A session of `ttl` seconds, revoked at exit. While `healthy()` is false no keep-alive is sent. `clock` is
    monotonic, the running loop's unless given. Raises `StoreError` when no lease is to be had."""
    clock = clock or asyncio.get_running_loop().time
    sent = clock()
    session = Session(store, await store.grant_lease(ttl), ttl, sent, clock)
    keeping = asyncio.create_task(session.keep(healthy), name=f"keep-alive {session.lease:x}")
    try:
        yield session
    finally:
        keeping.cancel()
        with suppress(asyncio.CancelledError):
            await keeping
        if not session.lost.is_set():
            await _revoke(store, session.lease)


async def _revoke(store: Store, lease: int) -> None:
    """Where it fails, the lease ends by itself."""
    try:
        async with asyncio.timeout(REVOKE_TIMEOUT_S):
            await store.revoke_lease(lease)
    except (StoreError, TimeoutError) as error:
        log.info("lease %x is left to expire: %s", lease, error or "no answer")
