"""etcd as the protocol relies on it, at the level of facts: revisions, leases, transactions, ordered watches."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from coordinator.core.events import (
    Changed,
    DecisionSeen,
    DemandSeen,
    DeviceSeen,
    EpochSeen,
    Fact,
    Listed,
    LoadSeen,
    PolicySeen,
    ResidencySeen,
    SeatSeen,
    SpecSeen,
    TokenSeen,
)
from coordinator.core.model import Epoch
from tests.helpers.sim.clockwork import Clockwork

Key = tuple[str, ...]


class Row:
    def __init__(self, value: object, created: int, revision: int, lease: int) -> None:
        self.value = value
        self.created = created
        self.revision = revision
        self.lease = lease


class Watch:
    """One watcher: gets whole revisions in order, each later than the one before, late by a random delay."""

    def __init__(self, etcd: Etcd, deliver: Callable[[Listed | Changed], None], delay: Callable[[], float]) -> None:
        self._etcd = etcd
        self._deliver = deliver
        self._delay = delay
        self._free_at = 0.0
        self.closed = False

    def send(self, event: Listed | Changed, *, extra: float = 0.0) -> None:
        clockwork = self._etcd.clockwork
        at = max(self._free_at, clockwork.now + self._delay() + extra)
        self._free_at = at
        # Not `after` what is left until then: rounding would let one event overtake another of the same time.
        clockwork.at(at, lambda: None if self.closed else self._deliver(event))

    def relist(self, *, extra: float = 0.0) -> None:
        self.send(self._etcd.listing(), extra=extra)


class Etcd:
    """All keys. Every successful transaction is one revision."""

    def __init__(self, clockwork: Clockwork, rng: Random) -> None:
        self.clockwork = clockwork
        self.rng = rng
        self.rows: dict[Key, Row] = {}
        self.revision = 1
        self.leases: set[int] = set()
        self.watches: list[Watch] = []
        self._lives = 0
        self.reborn()

    @property
    def epoch(self) -> str:
        row = self.rows[("epoch",)]
        assert isinstance(row.value, Epoch)
        return row.value.id

    def reborn(self) -> None:
        """The data is lost: revisions start again, every lease is void, somebody writes a new epoch."""
        self._lives += 1
        self.rows.clear()
        self.leases.clear()
        self.revision = 1
        self.txn([(("epoch",), Epoch(id=f"life-{self._lives}"), 0)], watch=False)
        for watch in self.watches:
            watch.relist(extra=self.rng.uniform(0.0, 1.0))

    def get(self, key: Key) -> object | None:
        row = self.rows.get(key)
        return row.value if row is not None else None

    def mod(self, key: Key) -> int:
        row = self.rows.get(key)
        return row.revision if row is not None else 0

    def lease(self) -> int:
        lease = self.rng.getrandbits(60) + 1
        self.leases.add(lease)
        return lease

    def txn(self, writes: list[tuple[Key, object | None, int]], *, watch: bool = True) -> int | None:
        """Put (or with None delete) at one revision; None: a lease is dead, nothing happened."""
        if any(value is not None and lease and lease not in self.leases for _, value, lease in writes):
            return None
        self.revision += 1
        facts: list[Fact] = []
        for key, value, lease in writes:
            before = self.rows.pop(key, None)
            if value is not None:
                created = before.created if before is not None else self.revision
                self.rows[key] = Row(value, created, self.revision, lease)
            elif before is None:
                continue
            fact = fact_of(key, value, self.revision, lease)
            facts += [fact] if fact is not None else []
        if watch:
            for each in self.watches:
                each.send(Changed(tuple(facts), self.revision))
        return self.revision

    def revoke(self, lease: int) -> None:
        """The lease ends: all its keys go in one revision."""
        if lease in self.leases:
            self.leases.discard(lease)
            self.txn([(key, None, 0) for key in sorted(self.rows) if self.rows[key].lease == lease])

    def listing(self) -> Listed:
        rows = sorted(self.rows.items())
        facts = [fact_of(key, row.value, row.revision, row.lease) for key, row in rows]
        return Listed(tuple(fact for fact in facts if fact is not None), self.revision)

    def watch(self, deliver: Callable[[Listed | Changed], None], delay: Callable[[], float]) -> Watch:
        watch = Watch(self, deliver, delay)
        self.watches.append(watch)
        watch.relist()
        return watch


def fact_of(key: Key, value: object | None, revision: int, lease: int) -> Fact | None:
    """What a key's value tells; None: nothing to the scheduler."""
    makers: dict[str, Callable[[], Fact]] = {
        "spec": lambda: SpecSeen(key[1], value, revision, lease),  # type: ignore[arg-type]
        "residency": lambda: ResidencySeen(key[1], value, revision),  # type: ignore[arg-type]
        "load": lambda: LoadSeen(key[1], value, revision),  # type: ignore[arg-type]
        "device": lambda: DeviceSeen(key[1], value, revision),  # type: ignore[arg-type]
        "token": lambda: TokenSeen(key[1], value, revision),  # type: ignore[arg-type]
        "seat": lambda: SeatSeen(key[1], value, revision),  # type: ignore[arg-type]
        "epoch": lambda: EpochSeen(value, revision),  # type: ignore[arg-type]
        "policy": lambda: PolicySeen(key[1], value, revision),  # type: ignore[arg-type]
        "demand": lambda: DemandSeen(key[1], key[2], value),  # type: ignore[arg-type]
        "decision": lambda: DecisionSeen(int(key[1])),
    }
    maker = makers.get(key[0])
    return maker() if maker is not None else None
