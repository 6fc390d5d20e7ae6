"""Etcd in memory behind a network that delays, loses, doubles and reorders, and clients that may die at any call."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from coordinator.errors import Ambiguous, LeaseLost, StoreUnavailable, VnpuError
from coordinator.store.base import Compare, ModRevision, Op, TxnResult
from coordinator.store.memory import Fault, MemoryEtcd, MemoryStore
from tests.helpers.whole.loop import NOBODY, Proc

CALL_S = 2.0
LAGS = (0.0, 0.0, 0.001, 0.02)
_FAULTS = tuple(Fault(delay=lag) for lag in LAGS)


class SimEtcd(MemoryEtcd):
    """`judge` sees every transaction that takes effect, before it does."""

    def __init__(self, rng: Random, judge: Callable[[Sequence[Op]], None]) -> None:
        super().__init__(rng=rng)
        self._judge = judge
        self.commits = 0

    def txn(self, compares: Sequence[Compare], then: Sequence[Op]) -> TxnResult:
        result, changes = self.mvcc.txn(compares, then)
        if changes is not None:
            self.commits += 1
            self._judge(then)
        self._publish(changes)
        return result


class SimStore(MemoryStore):
    """One process's connection. A request is on its way even when its sender dies.

    `bad_until`: the network loses and delays until then. `fuse`: the process dies at its n-th call from now, before or
    after it took effect.
    """

    def __init__(
        self, server: SimEtcd, proc: Proc, rng: Random, die: Callable[[], None], over: Callable[[], bool]
    ) -> None:
        super().__init__(server, faults=self._watch_lag, timeout=CALL_S)
        self._proc = proc
        self._rng = rng
        self._die = die
        self._over = over
        self._loop = asyncio.get_running_loop()
        self.bad_until = 0.0
        self.fuse = 0

    def _watch_lag(self, verb: str) -> Fault:
        bad = self._loop.time() < self.bad_until
        return Fault(delay=self._rng.uniform(0.0, 0.5)) if bad else _FAULTS[int(self._rng.random() * len(_FAULTS))]

    def gone(self) -> None:
        """The process is dead: nobody listens to its watches any more."""
        self.break_watches()

    async def txn(self, compares: Sequence[Compare], then: Sequence[Op]) -> TxnResult:
        double = any(isinstance(compare, ModRevision) for compare in compares)
        return await self._send("txn", lambda: self.server.txn(compares, then), double=double)  # type: ignore[no-any-return]

    async def _call(self, verb: str, act: Callable[[], Any]) -> Any:
        return await self._send(verb, act)

    def _send(self, verb: str, act: Callable[[], Any], *, double: bool = False) -> asyncio.Future[Any]:
        """`double`: it compares what it rests on, so that a copy of it that comes later must do no harm."""
        rng, loop = self._rng, self._loop
        if self._over():
            raise asyncio.CancelledError
        answer: asyncio.Future[Any] = loop.create_future()
        give_up = loop.time() + self._timeout
        bad = loop.time() < self.bad_until
        after = 0
        if self.fuse:
            self.fuse -= 1
            after = 0 if self.fuse else rng.choice((1, 2))
        if after == 1:
            self._die()
        delay = rng.uniform(0.0, 7.0) if bad and rng.random() < 0.3 else _lag(rng)
        sent = not (bad and rng.random() < 0.15)
        lost = bad and rng.random() < 0.3
        if sent:
            loop.call_later(delay, self._arrive, verb, act, None if lost else answer, give_up, context=NOBODY)
            if double and rng.random() < (0.3 if bad else 0.02):
                loop.call_later(delay + rng.uniform(0.0, 3.0), self._arrive, verb, act, None, give_up, context=NOBODY)
        if after == 2:
            loop.call_later(delay + 0.0005, self._die, context=NOBODY)
        if lost or not sent or delay > self._timeout:
            self._never(verb, answer, give_up)
        return answer

    def _arrive(self, verb: str, act: Callable[[], Any], answer: asyncio.Future[Any] | None, give_up: float) -> None:
        """`answer`: None where nobody will hear it."""
        if not self._reachable():
            if answer is not None:
                self._never(verb, answer, give_up)
            return
        try:
            result, error = act(), None
        except VnpuError as raised:
            result, error = None, raised
        if answer is not None:
            self._loop.call_later(_lag(self._rng), _settle, answer, result, error, context=NOBODY)

    def _never(self, verb: str, answer: asyncio.Future[Any], give_up: float) -> None:
        """No answer comes in time: who asked finds out when its patience ends."""
        self._loop.call_at(max(give_up, self._loop.time()), _settle, answer, None, _unheard(verb), context=NOBODY)

    def _revoke(self, lease: int) -> None:
        try:
            self.server.expire_lease(lease)
        except LeaseLost:
            return


def _lag(rng: Random) -> float:
    return LAGS[int(rng.random() * len(LAGS))]


def _settle(answer: asyncio.Future[Any], result: Any, error: Exception | None) -> None:
    if answer.done():
        return
    if error is not None:
        answer.set_exception(error)
    else:
        answer.set_result(result)


def _unheard(verb: str) -> Exception:
    if verb == "txn":
        return Ambiguous("txn: the reply was lost", remedy="read back what it wrote, do not resend")
    return StoreUnavailable(f"{verb}: no answer in time")
