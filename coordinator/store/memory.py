"""The store in memory, with etcd's semantics: for tests and simulations, deterministic under a deterministic loop.

`MemoryEtcd` is the server, shared by all; each process under test gets its own `MemoryStore` and thereby its own
faults. Leases expire on the running loop's clock by timers, or, where a `clock` is handed in, when `expire()` is
called after moving it. Not thread-safe: one loop.
"""

from __future__ import annotations

import asyncio
import copy
import random
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import msgspec

from coordinator.errors import Ambiguous, LeaseLost, Rewound, StoreUnavailable
from coordinator.store.base import Changes, Compare, KeyValue, Listing, Op, TxnResult
from coordinator.store.mvcc import Mvcc

T = TypeVar("T")


class Fault(msgspec.Struct, frozen=True):
    """What happens to one call. Delays are seconds; a lost request or reply shows when the call's deadline passes."""

    delay: float = 0.0
    reply_delay: float = 0.0
    lose_request: bool = False
    lose_reply: bool = False


NO_FAULT = Fault()


def no_faults(verb: str) -> Fault:
    """Called with the verb's name (`get`, `list`, `txn`, `grant_lease`, …) before each call."""
    return NO_FAULT


@dataclass
class _Watcher:
    """One live watch: what was committed since it was opened and is not delivered yet."""

    prefix: str
    pending: deque[Changes] = field(default_factory=deque)
    broken: bool = False
    _waiting: asyncio.Future[None] | None = None

    def offer(self, changes: Changes) -> None:
        if self.broken:
            return
        seen = [change for change in changes.changes if change.key.startswith(self.prefix)]
        if seen:
            whole = len(seen) == len(changes.changes)
            self.pending.append(changes if whole else Changes(tuple(seen), changes.revision))
            self._wake()

    def cut(self) -> None:
        self.broken = True
        self.pending.clear()
        self._wake()

    def next(self) -> Changes | None:
        """The next batch; None where there is none."""
        return self.pending.popleft() if self.pending else None

    def news(self) -> asyncio.Future[None]:
        """Done when there is a batch, or the watch is cut. One waits at a time."""
        self._waiting = asyncio.get_running_loop().create_future()
        return self._waiting

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)


class MemoryEtcd:
    """The server. The knobs do what happens to a real one: `compact`, `stop`, `start`, `restart`, `break_watches`,
    `expire_lease`, `lose_data`, `checkpoint` with `restore`."""

    def __init__(
        self,
        *,
        clock: Callable[[], float] | None = None,
        rng: random.Random | None = None,
        min_ttl: int = 1,
    ) -> None:
        self.mvcc = Mvcc()
        self._clock = clock
        self._rng = rng or random.Random(0)
        self._min_ttl = min_ttl
        self._watchers: list[_Watcher] = []
        self._timer: asyncio.TimerHandle | None = None
        self._up = asyncio.Event()
        self._up.set()

    @property
    def running(self) -> bool:
        return self._up.is_set()

    @property
    def watchers(self) -> int:
        return len(self._watchers)

    def client(self, *, faults: Callable[[str], Fault] = no_faults, timeout: float = 5.0) -> MemoryStore:
        """A store on this server for one process; a lost call shows after `timeout` seconds."""
        return MemoryStore(self, faults=faults, timeout=timeout)

    def now(self) -> float:
        return self._clock() if self._clock else asyncio.get_running_loop().time()

    def txn(self, compares: Sequence[Compare], then: Sequence[Op]) -> TxnResult:
        result, changes = self.mvcc.txn(compares, then)
        self._publish(changes)
        return result

    def grant_lease(self, ttl: int) -> int:
        lease = self._rng.getrandbits(62) + 1
        self.mvcc.grant(lease, max(ttl, self._min_ttl), self.now())
        self._arm()
        return lease

    def keep_alive(self, lease: int) -> float:
        ttl = self.mvcc.keep_alive(lease, self.now())
        self._arm()
        return float(ttl)

    def expire_lease(self, lease: int) -> None:
        """End the lease now, as expiry or a revocation does. Raises `LeaseLost` when it is gone already."""
        self._publish(self.mvcc.revoke(lease))
        self._arm()

    def expire(self) -> None:
        """End every lease whose time is over; with a clock handed in, call it after moving that clock."""
        self._expire(self.now())

    def compact(self, revision: int | None = None) -> None:
        """Forget changes before `revision` (None: the current one). Live watches keep what is on its way to them."""
        self.mvcc.compact(self.mvcc.revision if revision is None else revision)

    def break_watches(self) -> None:
        """Cut every watch: what was not delivered yet comes from history when it is resumed."""
        for watcher in list(self._watchers):
            watcher.cut()

    def stop(self) -> None:
        """No call is answered, no lease expires, until `start`."""
        self._up.clear()
        self.break_watches()

    def start(self) -> None:
        """Serve again; leases start with their full TTL, as measured on etcd."""
        self.mvcc.renew_leases(self.now())
        self._up.set()
        self._arm()

    def restart(self) -> None:
        self.stop()
        self.start()

    def lose_data(self) -> None:
        """The data directory is gone: revisions begin again (PROTOCOL rule 13)."""
        self.restore(Mvcc())

    def checkpoint(self) -> Mvcc:
        """A backup to `restore` later."""
        return copy.deepcopy(self.mvcc)

    def restore(self, backup: Mvcc) -> None:
        """A backup is put back: the store's revision may be below one that was seen before."""
        self.mvcc = copy.deepcopy(backup)
        self.restart()

    async def until_up(self) -> None:
        await self._up.wait()

    @contextmanager
    def watching(self, prefix: str, start_revision: int) -> Iterator[_Watcher]:
        """Raises `Compacted` where `start_revision` is forgotten, `Rewound` where it is too far ahead."""
        if start_revision > self.mvcc.revision + 1:
            raise Rewound(self.mvcc.revision)
        watcher = _Watcher(prefix)
        for changes in self.mvcc.since(start_revision):
            watcher.offer(changes)
        self._watchers.append(watcher)
        try:
            yield watcher
        finally:
            self._watchers.remove(watcher)

    def _publish(self, changes: Changes | None) -> None:
        if changes:
            for watcher in self._watchers:
                watcher.offer(changes)

    def _expire(self, now: float) -> None:
        while self.running and (due := self.mvcc.due()) and due[0] <= now:
            self._publish(self.mvcc.revoke(due[1]))
        self._arm()

    def _arm(self) -> None:
        """Set the timer to the next lease's end; a clock that was handed in has no timers. A timer may fire a rounding
        error early, so it brings its own time along."""
        if self._timer:
            self._timer.cancel()
            self._timer = None
        due = self.mvcc.due()
        if due and self._clock is None and self.running:
            self._timer = asyncio.get_running_loop().call_at(due[0], self._expire, due[0])


class MemoryStore:
    """One process's `Store` on a `MemoryEtcd`. `partition` cuts it off from the server, `heal` joins it again."""

    def __init__(self, server: MemoryEtcd, *, faults: Callable[[str], Fault] = no_faults, timeout: float = 5.0) -> None:
        self.server = server
        self.faults = faults
        self._timeout = timeout
        self._watchers: list[_Watcher] = []
        self._joined = asyncio.Event()
        self._joined.set()

    def partition(self) -> None:
        self._joined.clear()
        self.break_watches()

    def heal(self) -> None:
        self._joined.set()

    def break_watches(self) -> None:
        """Cut this process's watches only; each resumes where it was."""
        for watcher in list(self._watchers):
            watcher.cut()

    async def get(self, key: str) -> KeyValue | None:
        return await self._call("get", lambda: self.server.mvcc.get(key))

    async def list(self, prefix: str) -> Listing:
        return await self._call("list", lambda: self.server.mvcc.list(prefix))

    async def txn(self, compares: Sequence[Compare], then: Sequence[Op]) -> TxnResult:
        return await self._call("txn", lambda: self.server.txn(compares, then))

    async def grant_lease(self, ttl: int) -> int:
        return await self._call("grant_lease", lambda: self.server.grant_lease(ttl))

    async def keep_alive(self, lease: int) -> float:
        return await self._call("keep_alive", lambda: self.server.keep_alive(lease))

    async def revoke_lease(self, lease: int) -> None:
        await self._call("revoke_lease", lambda: self._revoke(lease))

    async def watch(self, prefix: str, start_revision: int) -> AsyncGenerator[Changes, None]:
        if start_revision < 1:
            raise ValueError("a watch starts at revision 1 or later")
        following = start_revision
        while True:
            await self._joined.wait()
            await self.server.until_up()
            with self._watching(prefix, following) as watcher:
                while not watcher.broken:
                    if (changes := watcher.next()) is None:
                        await watcher.news()
                        continue
                    lag = self.faults("watch").delay
                    if lag:
                        await asyncio.sleep(lag)
                    following = changes.revision + 1
                    yield changes

    async def close(self) -> None:
        """Nothing is held: a watch ends when its iterator is closed."""

    @contextmanager
    def _watching(self, prefix: str, start_revision: int) -> Iterator[_Watcher]:
        with self.server.watching(prefix, start_revision) as watcher:
            self._watchers.append(watcher)
            try:
                yield watcher
            finally:
                self._watchers.remove(watcher)

    def _revoke(self, lease: int) -> None:
        try:
            self.server.expire_lease(lease)
        except LeaseLost:
            return

    async def _call(self, verb: str, act: Callable[[], T]) -> T:
        fault = self.faults(verb)
        await asyncio.sleep(fault.delay)  # at least one turn of the loop, as any network call takes
        if fault.lose_request or not self._reachable():
            await asyncio.sleep(self._timeout)
            raise StoreUnavailable(f"{verb}: no endpoint answered within {self._timeout:g} s")
        self.server.expire()
        answer = act()
        await asyncio.sleep(fault.reply_delay)
        if fault.lose_reply or not self._reachable():
            await asyncio.sleep(self._timeout)
            raise self._lost_reply(verb)
        return answer

    def _reachable(self) -> bool:
        return self._joined.is_set() and self.server.running

    def _lost_reply(self, verb: str) -> Exception:
        if verb == "txn":
            return Ambiguous("txn: the reply was lost", remedy="read back what it wrote, do not resend")
        return StoreUnavailable(f"{verb}: the reply was lost")
