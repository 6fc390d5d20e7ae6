"""Carries out what the state machine wants done, and reports what came of it: at the daemon, and at the engine."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from coordinator.core.model import Fence
from engine_patch import events, report
from engine_patch.engine import Engine
from engine_patch.report import Report
from native.client import Client
from native.link import DaemonError, DaemonRefused
from native.protocol import Answer, Code

log = logging.getLogger("vllm.vnpu.agent")

T = TypeVar("T")

ENTER_S = 10.0
LEAVE_S = 10.0
PAUSE_S = 0.2
MEMORY_S = 60.0
"""Limit of one memory operation; the leader's own limit for the whole of it is as long."""
RESUME_S = 30.0
SEAL_S = 300.0

_WAITING = (Code.TIMEOUT, Code.FAILED, Code.FORBIDDEN)
"""Refusals that say nothing about the fence. FORBIDDEN: the daemon does not see our spec key (yet)."""


class StepFailed(Exception):
    """A step ended badly: the engine cannot go on."""


def outcome(reports: tuple[Report, ...]) -> events.Outcome:
    """All ranks' reports as one. Raises `StepFailed` where a rank reports an error."""
    for one in reports:
        if one.error:
            raise StepFailed(f"rank {one.rank}: {one.error}")
    return events.Outcome(
        held=report.held(reports),
        restored=sum(one.restored for one in reports),
        d2h=sum(one.d2h for one in reports),
        kv_saved=sum(one.kv_saved for one in reports),
        steps=report.steps(reports),
    )


class Errands:
    """Each method ends by posting exactly one event: the answer, or `Failed`."""

    def __init__(self, client: Client, post: Callable[[events.Event], None]) -> None:
        self._client = client
        self._post = post

    async def enter(self, device: str, fence: Fence) -> None:
        start = time.monotonic()
        try:
            await asyncio.to_thread(self._client.enter, device, fence.epoch, fence.revision, ENTER_S)
        except DaemonRefused as refused:
            retry = refused.code in _WAITING
            await asyncio.sleep(PAUSE_S if retry else 0)
            self._post(events.EnterRefused(device, str(refused), retry))
        except DaemonError as error:
            await asyncio.sleep(PAUSE_S)
            self._post(events.EnterRefused(device, str(error), retry=True, unsure=True))
        else:
            self._post(events.Entered(device, time.monotonic() - start))

    async def leave(self, device: str, fence: Fence, answer: Answer | None = None) -> None:
        """Until the daemon has heard it: an operation that nobody leaves wedges the device."""
        start = time.monotonic()
        while True:
            try:
                await asyncio.to_thread(self._client.leave, device, fence.epoch, fence.revision, LEAVE_S, answer)
                break
            except DaemonRefused as refused:
                if refused.code is Code.NOT_OPEN:
                    log.warning("leave %s under %d: %s", device, fence.revision, refused)
                    break
                log.warning("leave %s: %s; asking again", device, refused)
            except DaemonError as error:
                log.warning("leave %s: %s; asking again", device, error)
            await asyncio.sleep(PAUSE_S)
        self._post(events.Left(device, time.monotonic() - start))

    async def drain(self, engine: Engine) -> None:
        await self._step("drain", engine.drain(), MEMORY_S, lambda _, took: events.Drained(took))

    async def resume(self, engine: Engine) -> None:
        await self._step("resume", engine.resume(), RESUME_S, lambda _, took: events.Resumed(took))

    async def offload(self, engine: Engine) -> None:
        def answer(reports: tuple[Report, ...], took: float) -> events.Event:
            # Only what is to keep the weights can be denied here: nothing was unmapped, and the device is needed.
            for one in reports:
                if one.denied:
                    raise StepFailed(f"rank {one.rank}: its weights cannot be kept in host memory: {one.denied}")
            return events.Worked(outcome(reports))

        await self._step("offload", engine.offload(), MEMORY_S, answer)

    async def restore(self, engine: Engine) -> None:
        def answer(reports: tuple[Report, ...], took: float) -> events.Event:
            restored = outcome(reports)
            denied = next((one.denied for one in reports if one.denied), "")
            if denied:
                return events.Denied(denied)
            return events.Ready(restored) if any(one.pending for one in reports) else events.Worked(restored)

        await self._step("restore", engine.restore(), MEMORY_S, answer)

    async def settle(self, engine: Engine) -> None:
        await self._step("restore", engine.settle(), MEMORY_S, lambda reports, _: events.Worked(outcome(reports)))

    async def undo(self, engine: Engine) -> None:
        def answer(reports: tuple[Report, ...], took: float) -> events.Event:
            outcome(reports)
            return events.Undone(took)

        await self._step("undo", engine.undo(), MEMORY_S, answer)

    async def seal(self, engine: Engine, sealed: Callable[[tuple[Report, ...]], None]) -> None:
        """End of the start-up. `sealed` looks at the reports and may refuse them with `StepFailed`."""

        def answer(reports: tuple[Report, ...], took: float) -> events.Event:
            loaded = outcome(reports)
            sealed(reports)
            return events.Loaded(loaded)

        await self._step("seal", engine.seal(), SEAL_S, answer)

    async def _step(
        self, name: str, work: Awaitable[T], limit_s: float, answer: Callable[[T, float], events.Event]
    ) -> None:
        start = time.monotonic()
        try:
            async with asyncio.timeout(limit_s):
                result = await work
            event = answer(result, time.monotonic() - start)
        except TimeoutError:
            event = events.Failed(f"{name} took longer than {limit_s:g} s")
        except StepFailed as failed:
            event = events.Failed(f"{name}: {failed}")
        except Exception as error:
            # Whatever vLLM raises ends the engine: its state is not known any more.
            log.exception("%s failed", name)
            event = events.Failed(f"{name}: {type(error).__name__}: {error}")
        self._post(event)
