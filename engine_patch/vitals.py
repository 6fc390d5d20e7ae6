"""Watches over the engine's other processes: their death ends it, their silence stops its keep-alives."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Iterable

from engine_patch import pulse
from engine_patch.engine import Engine

log = logging.getLogger("vllm.vnpu.agent")


class Vitals:
    """`healthy` goes false when EngineCore misses a ping and nothing shows that it works, and true again with the next
    ping that is answered."""

    def __init__(self) -> None:
        self._well = asyncio.Event()
        self._well.set()

    @property
    def healthy(self) -> bool:
        return self._well.is_set()

    async def well(self) -> None:
        """Until it is healthy: an engine that hangs must not register again."""
        await self._well.wait()

    async def ping(self, engine: Engine, busy: Callable[[], bool]) -> None:
        """Until cancelled. `busy`: a memory operation is under way; it keeps EngineCore from answering and has its own
        deadline, so only a stopped process counts then."""
        pending: asyncio.Future[None] | None = None
        while True:
            before = pulse.signs(engine.pids())
            pending = pending or asyncio.ensure_future(engine.ping())
            done, _ = await asyncio.wait({pending}, timeout=pulse.PING_S)
            now = pulse.signs(engine.pids())
            if done:
                failed = pending.exception() is not None
                self._set(not failed, "its engine core is gone")
                pending = None
                await asyncio.sleep(pulse.EVERY_S)
            else:
                lost = pulse.stopped(now) if busy() else pulse.stuck(before, now)
                self._set(not lost, f"no answer to a ping in {pulse.PING_S:g} s, and no sign of life")

    def _set(self, healthy: bool, why: str) -> None:
        if healthy == self.healthy:
            return
        if healthy:
            log.warning("the engine answers again: keep-alives go on")
            self._well.set()
        else:
            log.warning("keep-alives stop: %s", why)
            self._well.clear()


async def first_death(pids: Iterable[int]) -> int:
    """The first of these processes that is gone, by its pidfd (pidfd_open(2))."""
    loop = asyncio.get_running_loop()
    died: asyncio.Future[int] = loop.create_future()

    def gone(pid: int) -> None:
        if not died.done():
            died.set_result(pid)

    fds: list[int] = []
    try:
        for pid in pids:
            try:
                fd = os.pidfd_open(pid)
            except ProcessLookupError:
                return pid
            fds.append(fd)
            loop.add_reader(fd, gone, pid)
        return await died
    finally:
        for fd in fds:
            loop.remove_reader(fd)
            os.close(fd)
