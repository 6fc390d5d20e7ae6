"""Engines that come and go with the configuration while the node runs.

The coordinator reads the file again when it is told to, and says so in its key; then it is read here too. What comes
in starts at once. What goes is drained first: the leader sends it no more requests and has it leave the device.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path

import msgspec

from coordinator.config import Config, load
from coordinator.core.model import Coordinator, Phase, Residency
from coordinator.errors import VnpuError
from coordinator.live_models import carried
from coordinator.picture import Mirror, Picture
from coordinator.placement import Engine, engines

READ_S = 30.0
DRAIN_S = 300.0
"""An engine that has not left the device by then is ended with what it works on."""


class Change(msgspec.Struct, frozen=True):
    """What a configuration that was read again makes of a node's engines, by id."""

    config: Config
    comes: Mapping[str, Engine]
    goes: tuple[str, ...]


def change(running: Config, now: Config) -> Change:
    """Raises WeightsError where the folder of a model with `device: any` holds no model."""
    config = carried(running, now)
    before, after = engines(running), engines(config)
    comes = {id_: engine for id_, engine in after.items() if id_ not in before}
    return Change(config, comes, tuple(id_ for id_ in before if id_ not in after))


def drained(picture: Picture, engine: str) -> bool:
    """Whether it has nothing on the device any more, or is not there."""
    residency = picture.of(Residency).get(engine)
    return residency is None or residency.phase in (Phase.OFFLOADED, Phase.STOPPED, Phase.FAILED, Phase.LOST)


class Turnover:
    """`come(config, id)` starts an engine, `go(id)` ends one for good; `say` tells a user."""

    def __init__(
        self,
        config: Config,
        read: tuple[Path, Mapping[str, str]],
        identifier: str,
        mirror: Mirror,
        come: Callable[[Config, str], None],
        go: Callable[[str], Coroutine[object, object, None]],
        say: Callable[[str], None],
    ) -> None:
        self._config = config
        self._read = read
        self._identifier = identifier
        self._mirror = mirror
        self._come = come
        self._go = go
        self._say = say
        self._seen: tuple[int, int] | None = None
        self._going: dict[str, asyncio.Task[None]] = {}

    async def run(self) -> None:
        """Until cancelled. A coordinator that was started again has read the file again."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                await self._mirror.until(lambda picture: self._mark(picture) not in (None, self._seen))
                self._seen = self._mark(self._mirror.picture)
                await self._look(tasks)

    def _mark(self, picture: Picture) -> tuple[int, int] | None:
        found = picture.of(Coordinator).get(self._identifier)
        return (found.pid, found.reads) if found is not None else None

    async def _look(self, tasks: asyncio.TaskGroup) -> None:
        try:
            async with asyncio.timeout(READ_S):
                found = await asyncio.to_thread(lambda: change(self._config, load(*self._read)))
        except TimeoutError:
            self._say(f"{self._read[0]} was not read within {READ_S:g} s; engines stay as they are")
            return
        except VnpuError as error:
            self._say(f"engines stay as they are: {error}")
            return
        self._config = found.config
        for engine in found.goes:
            self._going[engine] = tasks.create_task(self._leave(engine), name=f"{engine} goes")
        for engine in found.comes:
            tasks.create_task(self._enter(found.config, engine), name=f"{engine} comes")

    async def _enter(self, config: Config, engine: str) -> None:
        if (going := self._going.get(engine)) is not None:
            await asyncio.wait((going,))
        self._say(f"{engine} is new in the configuration")
        try:
            self._come(config, engine)
        except VnpuError as error:
            self._say(f"{engine} is not started: {error}")

    async def _leave(self, engine: str) -> None:
        self._say(f"{engine} is no longer in the configuration: it ends what it has begun, and goes")
        try:
            async with asyncio.timeout(DRAIN_S):
                await self._mirror.until(lambda picture: drained(picture, engine))
        except TimeoutError:
            self._say(f"{engine} did not leave the device within {DRAIN_S:g} s")
        await self._go(engine)
