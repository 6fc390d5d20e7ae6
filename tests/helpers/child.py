"""A process that a test starts, stops and kills."""

from __future__ import annotations

import asyncio
import signal
from types import TracebackType
from typing import Self

PATIENCE_S = 60.0


class Child:
    """Killed at the end of the `async with` block where it still lives."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()
        # The transport's pipes would otherwise be closed by the garbage collector, with a warning.
        if self._process.stdin is not None:
            self._process.stdin.close()
        await asyncio.sleep(0)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.returncode is None

    def kill(self) -> None:
        self._process.kill()

    def stop(self) -> None:
        """SIGSTOP, as a hung process is."""
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def terminate(self) -> None:
        self._process.terminate()

    async def ended(self) -> int:
        """Exit status, negative: the signal."""
        async with asyncio.timeout(PATIENCE_S):
            return await self._process.wait()
