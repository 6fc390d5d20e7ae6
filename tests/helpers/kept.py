"""A stage with a supervisor: engine processes that are started when the scheduler says so."""

from __future__ import annotations

import msgspec

from coordinator.core.commands import Command, Direct
from coordinator.core.events import Granted, ProcessOrderSeen, ProcessSeen
from coordinator.core.model import EngineId, HostRam, Phase
from coordinator.core.process import Life, Process, Wish
from tests.helpers.stage import Stage, of

KEEPER = "k1"


class KeptStage(Stage):
    """`budget`: host memory of node `n`; processes take 10 of it and 40 for their weights, unless said otherwise."""

    def __init__(self, *devices: str, budget: int = 100, **options: object) -> None:
        super().__init__(*devices, **options)  # type: ignore[arg-type]
        self.processes: dict[str, Process] = {}
        self.ordered: dict[str, int] = {}
        """mod_revision of the newest order."""
        self.ram(budget)

    def ram(self, total: int, masters: int = 0, saved_kv: int = 0, unused: int = 0) -> list[Command]:
        device = next(iter(self.states))
        return self.see(self.device(device, host_ram=HostRam(total, masters, saved_kv, unused)))

    def keep(
        self,
        engine: str,
        *devices: str,
        model: str = "",
        size: int = 10,
        weights: int = 40,
        stop_after: float | None = None,
        lazy: bool = True,
        together: bool = False,
    ) -> list[Command]:
        """The supervisor says that it can start it."""
        self.processes[engine] = Process(
            model=model or engine,
            devices=devices or ("n/0",),
            keeper=KEEPER,
            life=Life.STOPPED,
            lazy=lazy,
            together=together,
            bytes=size,
            weights=weights,
            stop_after=stop_after,
        )
        return self._told(engine)

    def life(self, engine: str, life: Life, **change: object) -> list[Command]:
        """The supervisor's word, in answer to the newest order."""
        change = {"obeyed": self.ordered.get(engine, 0), **change}
        self.processes[engine] = msgspec.structs.replace(self.processes[engine], life=life, **change)
        return self._told(engine)

    def _told(self, engine: str) -> list[Command]:
        return self.see(ProcessSeen("n", EngineId(engine), self.processes[engine], self.next()))

    def obeyed(self, direct: Direct) -> list[Command]:
        """Its transaction took effect, and the watch shows it."""
        revision = self.ordered[direct.engine] = self.next()
        said = self.hear(Granted(direct.id, revision))
        return said + self.see(ProcessOrderSeen(direct.engine, direct.order, revision))

    def run(self, engine: str) -> list[Command]:
        """It was ordered to run, and does: registered, resident, its weights in a master."""
        said = self.life(engine, Life.STARTING)
        process = self.processes[engine]
        said += self.engine(
            engine, Phase.RESIDENT, model=process.model, weights=process.weights, devices=process.devices
        )
        return said + self.life(engine, Life.RUNNING)

    def stopped(self, engine: str) -> list[Command]:
        said = self.gone(engine)
        said += self.see(*(self.disown(device, engine) for device in self.processes[engine].devices))
        return said + self.life(engine, Life.STOPPED)


def directs(commands: list[Command]) -> list[tuple[Wish, str]]:
    return [(direct.order.wish, direct.engine) for direct in of(Direct, commands)]
