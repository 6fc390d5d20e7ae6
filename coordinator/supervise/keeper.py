"""Keeps one program running: starts it, announces its crashes, starts it again after a back-off, stops it."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Coroutine
from enum import StrEnum
from typing import Protocol

import msgspec

from coordinator.errors import VnpuError
from coordinator.supervise.backoff import Backoff
from coordinator.supervise.child import first


class Kind(StrEnum):
    ETCD = "etcd"
    DAEMON = "daemon"
    COORDINATOR = "coordinator"
    ENGINE = "engine"


class Program(msgspec.Struct, frozen=True):
    """What to run: `env` is added to the supervisor's own. `stop_s` bounds its orderly end. It is given up after
    `give_up` crashes in a row before it was ready (0: never)."""

    name: str
    kind: Kind
    argv: tuple[str, ...]
    env: dict[str, str] = {}
    url: str = ""
    restart: bool = True
    stop_s: float = 10.0
    give_up: int = 0


class State(StrEnum):
    WAITING = "waiting"
    STARTING = "starting"
    READY = "ready"
    BACKING_OFF = "backing off"
    STOPPING = "stopping"
    ENDED = "ended"


class Listener(Protocol):
    """Hears everything that happens to a program, as it happens."""

    def moved(self, keeper: Keeper) -> None: ...

    def say(self, text: str) -> None: ...


class Running(Protocol):
    """A process that was started."""

    @property
    def pid(self) -> int: ...

    async def wait_exit(self) -> int:
        """Its exit status; negative: the signal that ended it."""
        ...

    async def wait(self) -> int:
        """The same, once nothing of it is left."""
        ...

    async def stop(self, limit_s: float, hurry: asyncio.Event) -> None:
        """Ends it in order, by force after `limit_s` or on `hurry`."""
        ...

    async def end(self) -> None:
        """By force, unless it is over; returns when nothing of it is left."""
        ...


Spawn = Callable[[Program], Coroutine[object, object, Running]]
Ready = Callable[[Program, Running], Coroutine[object, object, None]]


class Keeper:
    """One program and its present process. `slot` bounds how many start at once; `ready` returns when it is up."""

    def __init__(
        self,
        program: Program,
        spawn: Spawn,
        ready: Ready,
        listener: Listener,
        slot: asyncio.Semaphore,
        backoff: Backoff,
    ) -> None:
        self.program = program
        self.state = State.WAITING
        self.since = time.monotonic()
        self.child: Running | None = None
        self.ready_once = asyncio.Event()
        self.ended = asyncio.Event()
        self._spawn = spawn
        self._ready = ready
        self._listener = listener
        self._slot = slot
        self._backoff = backoff
        self._stopping = asyncio.Event()
        self._hurry = asyncio.Event()
        self._failed_starts = 0
        self._spawned = 0.0

    async def run(self) -> None:
        """Until the program is stopped, may not be restarted, or is given up."""
        try:
            while not self._stopping.is_set():
                end = await self._end()
                if self._stopping.is_set() or not await self._restart(end):
                    return
        finally:
            self._move(State.ENDED)
            self.ended.set()

    @property
    def told_to_stop(self) -> bool:
        """Whether its end is what was wanted."""
        return self._stopping.is_set()

    async def stop(self, hurry: asyncio.Event) -> None:
        """Ends the program for good and returns when nothing of it is left; `hurry` ends the patience."""
        self._hurry = hurry
        self._stopping.set()
        await self.ended.wait()

    async def _end(self) -> str:
        """One life of the process, and how it ended, in words."""
        try:
            return describe(await self._live())
        except VnpuError as error:
            return f"failed: {error}"

    async def _live(self) -> int:
        """One life of the process, from start to end; returns its exit status."""
        child = None
        try:
            async with self._slot:
                if self._stopping.is_set():
                    return 0
                self._spawned = time.monotonic()
                child = self.child = await self._start()
                if child is None:
                    return 0
                self._move(State.STARTING)
                await first((child.wait_exit(), self._become_ready(child), self._stopping.wait()))
            await first((child.wait_exit(), self._stopping.wait()))
            if self._stopping.is_set():
                self._move(State.STOPPING)
                await child.stop(self.program.stop_s, self._hurry)
            return await child.wait()
        finally:
            self.child = None
            if child is not None:
                await child.end()

    async def _start(self) -> Running | None:
        """None: it was stopped before. A start that hangs holds up no end."""
        spawning = asyncio.create_task(self._spawn(self.program))
        try:
            await first((asyncio.wait((spawning,)), self._stopping.wait()))
        finally:
            spawning.cancel()
            await asyncio.wait((spawning,))
        return None if spawning.cancelled() else spawning.result()

    async def _become_ready(self, child: Running) -> None:
        await self._ready(self.program, child)
        self._failed_starts = 0
        self._move(State.READY)
        self.ready_once.set()

    async def _restart(self, end: str) -> bool:
        """Announces the crash; True after the back-off, when it may start again."""
        name, wait_s = self.program.name, self._backoff.crashed(time.monotonic() - self._spawned)
        if self.state is not State.READY:
            self._failed_starts += 1
        if not self.program.restart:
            self._listener.say(f"{name} {end}; it is not restarted (restart: never)")
            return False
        if self._failed_starts == self.program.give_up > 0:
            self._listener.say(f"{name} {end}; given up after {self._failed_starts} failed starts")
            return False
        self._move(State.BACKING_OFF)
        self._listener.say(f"{name} {end}; restarting in {wait_s:g} s (crash {self._backoff.failures})")
        try:
            await asyncio.wait_for(self._stopping.wait(), wait_s)
        except TimeoutError:
            return True
        return False

    def _move(self, state: State) -> None:
        self.state = state
        self.since = time.monotonic()
        self._listener.moved(self)


def describe(status: int) -> str:
    """`ended with status 3`, `was killed by SIGKILL`."""
    if status >= 0:
        return f"ended with status {status}"
    try:
        return f"was killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"was killed by signal {-status}"
