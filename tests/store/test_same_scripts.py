"""The same random scripts on the store in memory and on real etcd: every answer is the same, revisions included.

Revisions are counted from the script's first, leases by their number in the script, keys lie under the script's own
prefix.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.errors import Compacted, LeaseLost, StoreError
from coordinator.store.base import (
    Changes,
    Compare,
    CreateRevision,
    Delete,
    KeyValue,
    ModRevision,
    Op,
    Put,
    Store,
    ValueIs,
)
from tests.helpers.etcd import RealEtcd, etcd34_binary, running_etcd
from tests.helpers.store import changes_until, put
from tests.store.conftest import MemoryServer, Server

NAMES = st.sampled_from(["a", "a/b", "a/c", "ab", "b", "\xe9", ""])
VALUES = st.sampled_from([b"", b"1", b"2"])
LEASES = st.integers(0, 3)
"""0: none; n: the script's n-th, granted or not, revoked or not."""
REVISIONS = st.integers(-1, 12)
"""Relative to the script's first; -1: zero."""


@dataclass(frozen=True)
class Txn:
    compares: tuple[tuple[str, str, int, bytes], ...]
    ops: tuple[tuple[str, str, bytes, int], ...]


@dataclass(frozen=True)
class Step:
    """`verb` of `get`, `list`, `grant`, `revoke`, `keep_alive`, `compact`, `watch`."""

    verb: str
    name: str = ""
    number: int = 0


TXNS = st.builds(
    Txn,
    st.lists(
        st.tuples(st.sampled_from(["create", "mod", "value"]), NAMES, REVISIONS, VALUES), max_size=2
    ).map(tuple),
    st.lists(
        st.tuples(st.sampled_from(["put", "put", "put", "delete", "prefix"]), NAMES, VALUES, LEASES), max_size=4
    ).map(tuple),
)  # fmt: skip
STEPS = st.one_of(
    TXNS,
    TXNS,
    st.builds(Step, st.sampled_from(["get", "list"]), NAMES),
    st.builds(Step, st.sampled_from(["grant", "revoke", "keep_alive"]), number=st.integers(1, 3)),
    st.builds(Step, st.sampled_from(["compact", "watch"]), number=REVISIONS),
)
SCRIPTS = st.lists(STEPS, max_size=20)


@dataclass
class Player:
    """Plays a script on one server and writes down what it answers."""

    server: Server
    store: Store
    prefix: str
    leases: dict[int, int] = field(default_factory=dict)
    first: int = 0

    async def play(self, script: list[Txn | Step]) -> list[object]:
        self.first = await put(self.store, f"{self.prefix}first")
        answers: list[object] = []
        for step in script:
            try:
                answers.append(await self._step(step))
            except Compacted as error:
                answers.append(("compacted", error.revision - self.first))
            except LeaseLost:
                answers.append("lease lost")
            except StoreError:
                answers.append("refused")
        for lease in self.leases.values():
            await self.store.revoke_lease(lease)
        answers.append(await self._step(Step("list")))
        answers.append(await self._history(self.first))
        return answers

    async def _step(self, step: Txn | Step) -> object:
        match step:
            case Txn(compares, ops):
                result = await self.store.txn([*map(self._compare, compares)], [*map(self._op, ops)])
                return result.succeeded, result.revision - self.first
            case Step("get", name):
                return self._shown(await self.store.get(self.prefix + name))
            case Step("list", name):
                listing = await self.store.list(self.prefix + name)
                return [self._shown(kv) for kv in listing.kvs], listing.revision - self.first
            case Step("grant", _, number):
                if number not in self.leases:
                    self.leases[number] = await self.store.grant_lease(1000 + number)
                return None
            case Step("revoke", _, number):
                return await self.store.revoke_lease(self._lease(number))
            case Step("keep_alive", _, number):
                return await self.store.keep_alive(self._lease(number))
            case Step("compact", _, number):
                return await self._compact(self.first + number)
            case Step("watch", _, number):
                return await self._history(self.first + max(number, 0))
        raise AssertionError(step)

    async def _compact(self, revision: int) -> object:
        """Both refuse what is compacted or in the future; in what words is no part of the contract."""
        try:
            await self.server.compact(revision)
        except (Compacted, StoreError, AssertionError):
            return "not compacted"
        return "compacted"

    async def _history(self, start: int) -> object:
        """All that is under the prefix from `start` on, up to a last mark that is put for the purpose."""
        last = await put(self.store, f"{self.prefix}mark")
        start = min(start, last)
        try:
            return [self._batch(changes) for changes in await changes_until(self.store, self.prefix, start, last)]
        except Compacted as error:
            return "compacted", error.revision - self.first

    def _batch(self, changes: Changes) -> object:
        shown = [(change.key.removeprefix(self.prefix), self._shown(change.kv)) for change in changes.changes]
        return changes.revision - self.first, shown

    def _shown(self, kv: KeyValue | None) -> object:
        if kv is None:
            return None
        lease = next((number for number, lease in self.leases.items() if lease == kv.lease), kv.lease)
        revisions = kv.create_revision - self.first, kv.mod_revision - self.first
        return kv.key.removeprefix(self.prefix), kv.value, *revisions, lease

    def _lease(self, number: int) -> int:
        return self.leases.get(number, 12345 + number) if number else 0

    def _revision(self, number: int) -> int:
        return self.first + number if number >= 0 else 0

    def _compare(self, compare: tuple[str, str, int, bytes]) -> Compare:
        kind, name, number, value = compare
        key = self.prefix + name
        match kind:
            case "create":
                return CreateRevision(key, self._revision(number))
            case "mod":
                return ModRevision(key, self._revision(number))
            case _:
                return ValueIs(key, value)

    def _op(self, op: tuple[str, str, bytes, int]) -> Op:
        kind, name, value, lease = op
        key = self.prefix + name
        return Put(key, value, self._lease(lease)) if kind == "put" else Delete(key, prefix=kind == "prefix")


_scripts = itertools.count()


@pytest.fixture(scope="module", params=["3.5", pytest.param("3.4", marks=pytest.mark.system)])
def alone(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealEtcd]:
    """An etcd that nobody else writes to: no revision in between."""
    old = request.param == "3.4"
    binary = etcd34_binary() if old else None
    with running_etcd(tmp_path_factory.mktemp("alone"), binary=binary) as etcd:
        yield etcd


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        yield runner


async def _both(alone: RealEtcd, script: list[Txn | Step]) -> tuple[list[object], list[object]]:
    prefix = f"/script/{next(_scripts)}/"
    memory = MemoryServer()
    client = alone.client(stall=30.0)
    try:
        in_memory = await Player(memory, memory.client(), prefix).play(script)
        return in_memory, await Player(alone, client, prefix).play(script)
    finally:
        await client.close()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(script=SCRIPTS)
def test_memory_answers_as_etcd_does(alone: RealEtcd, runner: asyncio.Runner, script: list[Txn | Step]) -> None:
    in_memory, on_etcd = runner.run(_both(alone, script))
    assert in_memory == on_etcd


@pytest.mark.system
@pytest.mark.timeout(900)
@settings(max_examples=500, deadline=None)
@given(script=SCRIPTS)
def test_memory_answers_as_etcd_does_500_times(
    alone: RealEtcd, runner: asyncio.Runner, script: list[Txn | Step]
) -> None:
    in_memory, on_etcd = runner.run(_both(alone, script))
    assert in_memory == on_etcd
