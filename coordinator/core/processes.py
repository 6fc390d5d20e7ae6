"""Processes of engines that a supervisor keeps, as etcd tells of them, and what they take of their node's host memory.

A part of the ledger: facts change it, everybody reads it. An order counts only for the keeper it names, so what an
earlier supervisor was told starts nothing. Bytes are bytes, times monotonic seconds.
"""

from __future__ import annotations

import msgspec

from coordinator.core.events import DeviceSeen, Fact, ProcessOrderSeen, ProcessSeen
from coordinator.core.model import DeviceId, EngineId, HostRam, ModelId
from coordinator.core.process import Life, Process, ProcessOrder, Wish

DOWN = frozenset({Life.STOPPED, Life.FAILED})


class ProcessEntry(msgspec.Struct):
    """One engine's process. An entry lives as long as any key of it."""

    id: EngineId
    node: str = ""
    process: Process | None = None
    since: float = 0.0
    """When its life was last seen to change."""
    ended_at: float = 0.0
    """When a process of it was last seen to have ended; 0: none was."""
    order: ProcessOrder | None = None
    revision: int = 0
    """mod_revision of the order; of its deletion where it is gone."""

    @property
    def wish(self) -> Wish:
        """What is wanted of it. An order to another keeper counts for nothing; without one it stays as it is."""
        if self.process is None or self.order is None or self.order.keeper != self.process.keeper:
            up = self.process is not None and self.process.life in (Life.STARTING, Life.RUNNING)
            return Wish.RUN if up else Wish.STOP
        return self.order.wish

    @property
    def lazy(self) -> bool:
        return self.process is not None and self.process.lazy

    @property
    def answered(self) -> bool:
        """Whether its keeper's word is the answer to the newest order."""
        return self.process is not None and (self.wish is Wish.STOP or self.process.obeyed >= self.revision)

    @property
    def down(self) -> bool:
        """There is no process, and none is on its way."""
        if self.process is None or self.process.life not in DOWN:
            return False
        return self.wish is Wish.STOP or self.answered


class Processes:
    """By engine, model and node."""

    def __init__(self) -> None:
        self.entries: dict[EngineId, ProcessEntry] = {}
        self.models: dict[ModelId, set[EngineId]] = {}
        self.nodes: dict[str, set[EngineId]] = {}
        self.ram: dict[str, HostRam] = {}
        """Host memory of nodes, as one of their devices' keys told last."""
        self._told_by: dict[str, DeviceId] = {}
        self._ram_at: dict[str, float] = {}
        """When that was last seen to change."""

    def apply(self, fact: Fact, now: float) -> set[ModelId]:
        """Take note; returns the models concerned."""
        match fact:
            case ProcessSeen():
                return self._process(fact, now)
            case ProcessOrderSeen():
                return self._order(fact)
            case DeviceSeen():
                return self._device(fact, now)
            case _:
                return set()

    def of(self, model: ModelId) -> list[ProcessEntry]:
        """Those whose supervisor is there."""
        return [self.entries[id_] for id_ in sorted(self.models.get(model, ()))]

    def models_of(self, engine: EngineId) -> list[ModelId]:
        """Its model, as long as its supervisor is there."""
        entry = self.entries.get(engine)
        return [ModelId(entry.process.model)] if entry is not None and entry.process is not None else []

    def on(self, node: str) -> list[ProcessEntry]:
        return [self.entries[id_] for id_ in sorted(self.nodes.get(node, ()))]

    def wish(self, engine: EngineId) -> Wish:
        """`run` where nobody keeps it but itself."""
        entry = self.entries.get(engine)
        return entry.wish if entry is not None and entry.lazy else Wish.RUN

    def returning(self, node: str) -> float:
        """When a process of `node` ended whose memory its daemon has not been heard about since; 0: none has."""
        ended = (entry.ended_at for entry in self.on(node))
        return max((at for at in ended if at > self._ram_at.get(node, 0.0)), default=0.0)

    def carry(self, old: Processes) -> None:
        """After a listing: what is as it was keeps its times."""
        for id_, entry in self.entries.items():
            before = old.entries.get(id_)
            if before is not None and before.process == entry.process:
                entry.since, entry.ended_at = before.since, before.ended_at
        for node, ram in self.ram.items():
            if old.ram.get(node) == ram:
                self._ram_at[node] = old._ram_at[node]

    def _entry(self, engine: EngineId) -> ProcessEntry:
        return self.entries.setdefault(engine, ProcessEntry(engine))

    def _process(self, fact: ProcessSeen, now: float) -> set[ModelId]:
        entry = self._entry(fact.engine)
        before = self._unlist(entry)
        if entry.process is None or fact.process is None or entry.process.life is not fact.process.life:
            entry.since = now
        if entry.process is not None and fact.process is not None and fact.process.life in DOWN:
            entry.ended_at = entry.ended_at if entry.process.life in DOWN else now
        entry.process, entry.node = fact.process, fact.node
        if fact.process is not None:
            self.models.setdefault(ModelId(fact.process.model), set()).add(entry.id)
            self.nodes.setdefault(entry.node, set()).add(entry.id)
        elif entry.order is None:
            del self.entries[entry.id]
        return before | ({ModelId(fact.process.model)} if fact.process is not None else set())

    def _unlist(self, entry: ProcessEntry) -> set[ModelId]:
        if entry.process is None:
            return set()
        model = ModelId(entry.process.model)
        for index, key in ((self.models, model), (self.nodes, entry.node)):
            index[key].discard(entry.id)  # type: ignore[index]
            if not index[key]:  # type: ignore[index]
                del index[key]  # type: ignore[arg-type]
        return {model}

    def _order(self, fact: ProcessOrderSeen) -> set[ModelId]:
        entry = self._entry(fact.engine)
        if fact.revision <= entry.revision:
            return set()
        entry.order, entry.revision = fact.order, fact.revision
        if entry.process is None:
            if fact.order is None:
                del self.entries[entry.id]
            return set()
        return {ModelId(entry.process.model)}

    def _device(self, fact: DeviceSeen, now: float) -> set[ModelId]:
        """Models are concerned where host memory became free."""
        node = fact.device.rpartition("/")[0]
        if fact.state is not None:
            before, self.ram[node] = self.ram.get(node), fact.state.host_ram
            self._told_by[node] = fact.device
            moved = before != fact.state.host_ram
            if moved:
                self._ram_at[node] = now
            return {ModelId(e.process.model) for e in self.on(node) if e.process is not None and e.lazy and moved}
        if self._told_by.get(node) == fact.device:
            del self._told_by[node], self.ram[node], self._ram_at[node]
        return set()
