"""The product's gateway in a process of its own, without etcd: `python -m benchmarks.gateway.served` prints its port.
Lines on standard input say where the model `m` is: `route URL`, or `hold`."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping

import uvloop

from coordinator.core.commands import Endpoint, Route
from coordinator.core.model import EngineId, ModelId
from coordinator.core.view import State
from coordinator.gateway.app import Gateway
from coordinator.gateway.settings import Settings
from coordinator.metrics import Metrics
from coordinator.process import log_to_stderr, raise_file_limit, settle

MODEL = ModelId("m")
MAX_QUEUE = 100_000


class Known:
    """What a coordinator would know."""

    def max_wait(self, model: str) -> float:
        return 600.0

    def objective(self, model: str) -> float | None:
        return None

    def phases(self) -> Mapping[str, str]:
        return {}

    def healthy(self) -> bool:
        return True


async def serve() -> None:
    """Until standard input ends."""
    metrics = Metrics(lambda: State(leading=False, epoch=None, revision=0))
    settings = Settings(port=0, models=(MODEL,), max_queue=MAX_QUEUE)
    async with Gateway(settings, metrics, _nothing, Known(), _nothing) as gateway:
        sys.stdout.write(gateway.url.rpartition(":")[2] + "\n")
        sys.stdout.flush()
        lines = asyncio.StreamReader()
        loop = asyncio.get_running_loop()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
        while line := (await lines.readline()).decode().split():
            endpoints = (Endpoint(EngineId("e"), line[1]),) if line[0] == "route" else ()
            gateway.route(Route(MODEL, endpoints))


def _nothing(model: str, told: float | None) -> None:
    """Nobody schedules here."""


if __name__ == "__main__":
    log_to_stderr("INFO")
    raise_file_limit()
    settle()
    uvloop.run(serve())
