"""A light engine (`tests/helpers/light_engine.py`) that stamps what its agent's own watch brings.

In the benchmark: `start`, then `Stamps`. In the process (`python -m benchmarks.handover.engine`): one JSON line on
standard output for each token and each probe, with the monotonic time, which all processes of a machine share.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from pathlib import Path

import msgspec

from coordinator.core.model import Order, Token
from coordinator.store import keys
from coordinator.store.base import Change, Changes, Listing, Store
from coordinator.store.codec import decode
from coordinator.supervise.ports import free_port
from tests.helpers.light_engine import LightEngine

PROBES = keys.ROOT + "probe/"
"""Raw puts of the benchmark: nobody else knows these keys."""
TOKENS = keys.ROOT + "tokens/"
LIMIT_S = 60.0


class Stamp(msgspec.Struct, frozen=True):
    """A change as the engine's watch brought it. `holder` is empty for a probe, `what` its key then, else the order."""

    at: float
    revision: int
    what: str
    holder: str = ""


class Stamps:
    """The stamps of one engine, in order."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def until(self, holds: Callable[[Stamp], bool]) -> Stamp:
        """The next one that `holds`; those before it are forgotten. Raises `TimeoutError`, `EOFError`."""
        assert self._process.stdout is not None
        async with asyncio.timeout(LIMIT_S):
            while line := await self._process.stdout.readline():
                stamp = msgspec.json.decode(line, type=Stamp)
                if holds(stamp):
                    return stamp
        raise EOFError("the engine has ended")

    async def order(self, engine: str, above: int) -> Stamp:
        """The next restore ordered of `engine`, in a revision above `above`."""
        wanted = (Order.RESTORE.value, engine)
        return await self.until(lambda stamp: (stamp.what, stamp.holder) == wanted and stamp.revision > above)

    async def probe(self, key: str) -> Stamp:
        return await self.until(lambda stamp: stamp.what == key)


async def start(folder: Path, etcd: str, name: str, *, size: int, ttl: int) -> tuple[LightEngine, Stamps]:
    """On node `bench`, device 0. `size`: bytes of weights."""
    light = {"port": free_port(), "size": size, "content": name, "hold": [], "fault": "", "join": LIMIT_S}
    told = {
        "VNPU_ETCD_ENDPOINTS": etcd,
        "VNPU_NODE": "bench",
        "VNPU_DEVICE": "0",
        "VNPU_ENGINE_ID": name,
        "VNPU_LEASE_TTL": str(ttl),
        "LIGHT_ENGINE": json.dumps(light),
    }
    log = folder / f"{name}.log"
    with log.open("ab") as file:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "benchmarks.handover.engine", env={**os.environ, **told}, stderr=file,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
    return LightEngine(process, name, int(str(light["port"])), log), Stamps(process)


# ---- in the process


def _stamp(change: Change, at: float) -> Stamp | None:
    if change.kv is None:
        return None
    if change.key.startswith(PROBES):
        return Stamp(at, change.revision, change.key)
    if change.key.startswith(TOKENS):
        token = decode(Token, change.kv.value)
        return Stamp(at, change.revision, token.order.value, token.holder.engine)
    return None


def main() -> None:
    from engine_patch import agent
    from tests.helpers import light_engine

    real = agent.follow

    async def follow(store: Store, prefix: str) -> AsyncGenerator[Listing | Changes, None]:
        async with aclosing(real(store, prefix)) as news:
            async for item in news:
                at = time.monotonic()
                yield item
                for change in item.changes if isinstance(item, Changes) else ():
                    if (stamp := _stamp(change, at)) is not None:
                        sys.stdout.write(msgspec.json.encode(stamp).decode() + "\n")
                        sys.stdout.flush()

    agent.follow = follow
    light_engine.main()


if __name__ == "__main__":
    main()
