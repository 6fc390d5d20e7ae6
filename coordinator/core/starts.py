"""Who waits for a process to be started, since when, and which orders to supervisors are not answered yet."""

from __future__ import annotations

from coordinator.core.commands import Direct
from coordinator.core.model import EngineId, ModelId, Order
from coordinator.core.orders import Lead, Orders, Why
from coordinator.core.process import ProcessOrder, Wish
from coordinator.core.processes import ProcessEntry, Processes
from coordinator.core.settings import Limits

MOST_TRIES = 8
"""So often a replica is ordered to start with its model: by `Limits.backoff`, for about three minutes."""


class Starts:
    """Orders are numbered by `orders`, with all other transactions of this leader."""

    def __init__(self, orders: Orders, limits: Limits) -> None:
        self._orders = orders
        self._limits = limits
        self._pending: dict[int, Direct] = {}
        self._busy: dict[EngineId, int] = {}
        self._rest: dict[EngineId, float] = {}
        self._since: dict[ModelId, float] = {}
        self._replicas: dict[EngineId, int] = {}
        self._again: dict[EngineId, float] = {}

    # ---- who waits

    def wait(self, model: ModelId, now: float) -> None:
        self._since.setdefault(model, now)

    def leave(self, model: ModelId) -> None:
        self._since.pop(model, None)

    def since(self, model: ModelId) -> float | None:
        """Since when requests for it wait for a process; None: they do not."""
        return self._since.get(model)

    # ---- replicas that come along

    def owe(self, engine: EngineId) -> None:
        """It is to be started with its model; nobody asks for it again where its order fails."""
        self._replicas.setdefault(engine, 0)

    def owed(self, engine: EngineId) -> bool:
        return engine in self._replicas

    def again_at(self, engine: EngineId) -> float:
        """When a replica that is owed may be ordered once more; who is waited for may be ordered sooner."""
        return max(self._rest.get(engine, 0.0), self._again.get(engine, 0.0))

    def settle(self, engine: EngineId) -> None:
        """It starts, or comes with its model's next start."""
        self._replicas.pop(engine, None)
        self._again.pop(engine, None)

    # ---- orders

    def direct(self, lead: Lead, entry: ProcessEntry, wish: Wish, why: Why) -> Direct | None:
        """None: its supervisor is not there."""
        if entry.process is None:
            return None
        id_, decision = self._orders.number(Order(wish.value), entry.id, entry.process.devices, why)
        order = ProcessOrder(keeper=entry.process.keeper, wish=wish, cause=decision.cause)
        revision = entry.revision if entry.order is not None else 0
        direct = Direct(id_, entry.id, order, revision, lead.key, lead.revision, decision)
        self._pending[id_] = direct
        self._busy[entry.id] = id_
        return direct

    def blocked(self, engine: EngineId, now: float) -> bool:
        """Whether nothing may be ordered now: an order is unanswered, or one failed just now."""
        return engine in self._busy or now < self._rest.get(engine, 0.0)

    def rests_until(self, engine: EngineId) -> float:
        return self._rest.get(engine, 0.0)

    def running(self, engine: EngineId) -> bool:
        """Whether its start is asked of etcd."""
        return engine in self._busy and self._pending[self._busy[engine]].order.wish is Wish.RUN

    def leaving(self, engine: EngineId) -> bool:
        """Whether its end is asked of etcd."""
        return engine in self._busy and self._pending[self._busy[engine]].order.wish is not Wish.RUN

    def answered(self, id_: int) -> Direct | None:
        direct = self._pending.pop(id_, None)
        if direct is not None:
            self._busy.pop(direct.engine, None)
        return direct

    def failed(self, direct: Direct, now: float) -> None:
        """What somebody waits for is tried again soon and for ever, a replica later each time, `MOST_TRIES` times."""
        self._rest[direct.engine] = now + self._limits.backoff(1)
        if direct.engine not in self._replicas:
            return
        self._replicas[direct.engine] += 1
        self._again[direct.engine] = now + self._limits.backoff(self._replicas[direct.engine])
        if self._replicas[direct.engine] >= MOST_TRIES:
            self.settle(direct.engine)

    def overtaken(self, processes: Processes) -> None:
        """A newer order than a transaction compares was seen: that is it, or it never will be. And an engine whose
        supervisor went is owed nothing: it comes with its model's next start."""
        for engine, id_ in list(self._busy.items()):
            entry = processes.entries.get(engine)
            if entry is None or entry.revision > self._pending[id_].revision:
                self.answered(id_)
        for engine in list(self._replicas):
            entry = processes.entries.get(engine)
            if entry is None or entry.process is None:
                self.settle(engine)

    def give_up(self) -> None:
        """Expect no answers any more."""
        self._pending.clear()
        self._busy.clear()
        self._rest.clear()

    def forget(self) -> None:
        """Leadership is over."""
        self.give_up()
        self._since.clear()
        self._replicas.clear()
        self._again.clear()
