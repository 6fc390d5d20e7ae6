"""The way without a copy: an engine that starts on the device of one with equal weights moves into its pages. Real
etcd, node daemon, agents and memory hands; engines without vLLM (`tests/helpers/light_engine.py`).

In the benchmark: `beside`. In the process (`python -m benchmarks.weight_stream.beside`): an engine that starts, whose
weights come as often as it is told to: one line of JSON with the seconds for each line on its standard input.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from coordinator.core.model import Order
from coordinator.embedded import find_binary
from coordinator.store.floor import development
from tests.helpers.etcd import RealEtcd
from tests.helpers.light_engine import LightEngine
from tests.helpers.light_lab import light_lab

LIMIT_S = 120.0
SPARE = 64 << 20
"""On the device, for two engines' KV and rounding."""


class Starter:
    """The engine that starts, for ever."""

    def __init__(self, engine: LightEngine, pids: tuple[int, ...]) -> None:
        """`pids`: of all that works for it."""
        self._engine = engine
        self.pids = pids

    async def fetch(self) -> float:
        """Seconds from the first dial until the other engine's pages are its own."""
        self._engine.go_on()
        async with asyncio.timeout(LIMIT_S):
            return float(json.loads(await self._engine.hear())["seconds"])


@asynccontextmanager
async def beside(size: int) -> AsyncIterator[Starter]:
    """Beside an engine with `size` bytes of weights."""
    os.environ.update(development(os.environ))
    with tempfile.TemporaryDirectory(prefix="vnpu-beside-") as name:
        folder = Path(name)
        etcd = RealEtcd(folder, binary=find_binary())
        await etcd.start()
        try:
            async with light_lab(folder, etcd, 2 * size + SPARE) as lab:
                weights: dict[str, Any] = {"size": size, "content": "weights", "claims": "weights"}
                async with await lab.bring_up("first", **weights, beside="first") as first:
                    await first.ask()
                    last = await lab.start("next", **weights, beside="next", module=__name__)
                    async with last:
                        await lab.grant(last, Order.RESTORE)
                        assert lab.daemon.process is not None
                        yield Starter(last, (first.pid, last.pid, lab.daemon.process.pid))
        finally:
            await etcd.stop()


# ---- in the process


def main() -> None:
    from engine_patch.master import CALL_S
    from tests.helpers import light_engine, light_peers

    real = light_peers.Streams.fetch

    def fetch(self: light_peers.Streams) -> None:
        hands = self.hands
        hands.trim(hands.weights)
        indices = hands.weights.indices
        for _ in sys.stdin:
            begun = time.monotonic()
            real(self)
            hands.move_in()
            seconds = time.monotonic() - begun
            if hands.weights.bytes:
                raise RuntimeError("the weights were copied")
            sys.stdout.write(json.dumps({"seconds": seconds}) + "\n")
            sys.stdout.flush()
            hands.common.part(CALL_S)
            hands.weights.map(indices, CALL_S)

    light_peers.Streams.fetch = fetch  # type: ignore[method-assign]
    light_engine.main()


if __name__ == "__main__":
    main()
