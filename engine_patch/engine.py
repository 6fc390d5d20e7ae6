"""What the agent drives: an engine whose memory comes and goes. And vLLM as such an engine, from the API server."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Coroutine
from http import HTTPStatus
from typing import Any, Protocol, TypeVar

from engine_patch import core_calls, report
from engine_patch.door import Door
from engine_patch.kv_worth import KvWorth
from engine_patch.postbox import Postbox
from engine_patch.report import Report

log = logging.getLogger("vllm.vnpu.agent")

T = TypeVar("T")

GOODBYE_S = 1.0
"""Time for the errors to reach their clients, before the processes go."""


class Engine(Protocol):
    """Called from the agent's loop, one call at a time, except where it says so. The caller sets deadlines; a call that
    was cut off leaves the engine in no known state and is followed by `end` alone."""

    async def drain(self) -> None:
        """Shut the door and freeze what runs: no forward pass is under way or begins."""
        ...

    async def resume(self) -> None:
        """Let what is frozen run on, open the door."""
        ...

    async def seal(self) -> tuple[Report, ...]:
        """Loaded: make host masters; the reports carry the measured footprint and digests."""
        ...

    async def offload(self) -> tuple[Report, ...]:
        """May be called while `drain` is under way: no page leaves before that is done."""
        ...

    async def restore(self) -> tuple[Report, ...]:
        """Reports that are `pending`: requests may run, the copy goes on behind them until `settle` returns. Who waits
        at the door may be let in from now on, and what is frozen may run on as soon as every rank has its memory; the
        caller lets them by `resume`, or takes it back by `undo` where a rank was denied."""
        ...

    async def settle(self) -> tuple[Report, ...]:
        """The copy behind the last restore has ended, every byte of it was checked."""
        ...

    async def undo(self) -> tuple[Report, ...]:
        """Unmap whatever a denied restore has mapped."""
        ...

    async def ping(self) -> None:
        """Returns when the engine's own loop has answered. At any time."""
        ...

    def pids(self) -> tuple[int, ...]:
        """Processes whose death ends the engine, without the caller's own."""
        ...

    def stopping(self) -> bool:
        """Whether the engine is being stopped on purpose."""
        ...

    def end(self, reason: str) -> None:
        """Answer all that is open with an error and end the processes. Does not wait."""
        ...


class EngineCore(Protocol):
    """The part of vLLM's AsyncMPClient that is used (vllm/v1/engine/core_client.py, 0.32.0)."""

    resources: Any

    async def resume_scheduler_async(self) -> None: ...

    async def is_scheduler_paused_async(self) -> bool: ...

    async def call_utility_async(self, method: str, *args: Any) -> Any: ...


class EngineClient(Protocol):
    """The part of vLLM's AsyncLLM that is used (vllm/v1/engine/async_llm.py, 0.32.0)."""

    engine_core: EngineCore
    output_processor: Any

    async def collective_rpc(self, method: str, *, args: tuple[Any, ...] = ()) -> list[str]: ...


def last_word(text: str) -> Exception:
    """The one error whose text and status vLLM passes on to a client; versions before it (0.23) answer 500 with its
    text."""
    import vllm.exceptions

    if (graceful := getattr(vllm.exceptions, "GracefulHTTPError", None)) is not None:
        error: Exception = graceful(text, HTTPStatus.SERVICE_UNAVAILABLE)
        return error
    return RuntimeError(text)


class VllmEngine:
    """`Engine` over AsyncLLM. Every call hops to the API server's loop `loop`, where client and door live."""

    def __init__(
        self,
        client: EngineClient,
        door: Door,
        loop: asyncio.AbstractEventLoop,
        postbox: Postbox,
        kv_keep: int | None = None,
        worth: KvWorth | None = None,
    ) -> None:
        """`kv_keep`: bytes of KV a device that may be kept across a switch; None: all that is needed. `worth` says at
        each switch whether any is (None: it is)."""
        self._client = client
        self._door = door
        self._loop = loop
        self._postbox = postbox
        self._kv_keep = kv_keep
        self._worth = worth
        self._pending: tuple[Report, ...] = ()
        self._running = False
        """EngineCore has let its scheduler run on by itself, after a restore."""
        self._workers: tuple[int, ...] = ()

    async def drain(self) -> None:
        self._running = False

        async def there() -> None:
            self._door.shut()
            await self._client.engine_core.call_utility_async(core_calls.DRAIN)

        await self._hop(there())

    async def resume(self) -> None:
        async def there() -> None:
            self._door.open()
            if not self._running:
                await self._client.engine_core.resume_scheduler_async()

        await self._hop(there())

    async def seal(self) -> tuple[Report, ...]:
        reports = await self._call("vnpu_seal")
        self._workers = tuple(r.pid for r in reports)
        return reports

    async def offload(self) -> tuple[Report, ...]:
        offloading = self._client.engine_core.call_utility_async(core_calls.OFFLOAD, self._budget())
        reports = report.decode(await self._hop(offloading))
        if self._worth is not None:
            for one in reports:
                self._worth.saved(one.kv_saved, _seconds(one, "save_kv"))
        return reports

    async def restore(self) -> tuple[Report, ...]:
        async def there() -> list[str]:
            restoring = asyncio.ensure_future(self._client.engine_core.call_utility_async(core_calls.RESTORE))
            self._door.open()  # who waits is tokenized meanwhile, and vLLM queues it: its scheduler is paused
            texts: list[str] = await restoring
            return texts

        self._pending = report.decode(await self._hop(there()))
        self._running = core_calls.runs(self._pending)
        return self._restored(self._pending)

    async def settle(self) -> tuple[Report, ...]:
        return self._restored(await self._postbox.collect([one.rank for one in self._pending], self._pending[0].turn))

    async def undo(self) -> tuple[Report, ...]:
        async def there() -> list[str]:
            self._door.shut()  # who came in meanwhile is frozen, as after a drain
            return await self._client.collective_rpc("vnpu_undo")

        return report.decode(await self._hop(there()))

    async def ping(self) -> None:
        await self._hop(self._client.engine_core.is_scheduler_paused_async())

    def pids(self) -> tuple[int, ...]:
        return (*self._cores(), *self._workers)

    def stopping(self) -> bool:
        return bool(self._client.engine_core.resources.engine_manager.manager_stopped.is_set())

    def end(self, reason: str) -> None:
        """Open requests get their error as if vLLM's own output handler had failed; a moment later EngineCore is
        killed, workers follow their parent (`family.die_with_parent`), and the server is told to end."""
        self._loop.call_soon_threadsafe(self._end, reason)

    def _budget(self) -> int | None:
        """Bytes of KV to keep at this switch: none where computing them again was measured to be cheaper."""
        if self._worth is None or self._worth.keep:
            return self._kv_keep
        log.info(
            "KV is computed again: %.3g s a token, keeping it would cost %.3g s",
            self._worth.prefill_s,
            self._worth.keep_s,
        )
        return 0

    def _restored(self, reports: tuple[Report, ...]) -> tuple[Report, ...]:
        if self._worth is not None:
            for one in reports:
                self._worth.restored(one.restored, _seconds(one, "copy"))
        return reports

    def _end(self, reason: str) -> None:
        self._door.fail(reason)
        error = last_word(f"this engine cannot go on: {reason}")
        for delay in (0.0, GOODBYE_S / 2):  # the second for who had passed the door and was not vLLM's request yet
            self._loop.call_later(delay, self._client.output_processor.propagate_error, error)
        self._loop.call_later(GOODBYE_S, self._kill)

    def _kill(self) -> None:
        for pid in self._cores():
            os.kill(pid, signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGTERM)  # vLLM's own watchdog takes up to 5 s, and the daemon's patience ends then

    def _cores(self) -> tuple[int, ...]:
        processes = self._client.engine_core.resources.engine_manager.processes
        return tuple(process.pid for process in processes if process.pid is not None and process.is_alive())

    async def _call(self, method: str, *args: Any) -> tuple[Report, ...]:
        # Without a timeout: a late answer would be taken for that of the next call. The agent ends the engine instead.
        return report.decode(await self._hop(self._client.collective_rpc(method, args=args)))

    async def _hop(self, work: Coroutine[Any, Any, T]) -> T:
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))


def _seconds(report: Report, step: str) -> float:
    return sum(one.seconds for one in report.steps if one.name == step)
