"""One child process: its own session, its own log file, an end that is certain."""

from __future__ import annotations

import asyncio
import ctypes
import os
import sys
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from pathlib import Path

from coordinator.errors import VnpuError
from coordinator.supervise import group
from coordinator.supervise.guard import Guard

_LAUNCH = Path(__file__).with_name("launch.py")
_PR_SET_CHILD_SUBREAPER = 36
_SWEEP_S = 10.0


class Leftover(VnpuError):
    """Processes of a child could not be killed."""


def after(parent: int) -> list[str]:
    """What to put before a command so that it dies by SIGKILL with the thread of process `parent` that starts it."""
    return [sys.executable, "-I", "-S", str(_LAUNCH), str(parent)]


def adopt_orphans() -> None:
    """Grandchildren whose parent dies become ours, so that they can be waited for (prctl(2), CHILD_SUBREAPER)."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


class Child:
    """A process that leads its own session and process group; `pid` is also the group's id."""

    def __init__(self, process: asyncio.subprocess.Process, guard: Guard) -> None:
        self._process = process
        self._guard = guard
        self._gone = False

    @classmethod
    async def spawn(cls, argv: Sequence[str], env: Mapping[str, str], log: Path, guard: Guard) -> Child:
        """Starts `argv` with both outputs appended to `log`. A program that does not exist ends with status 127."""
        with log.open("ab") as output:
            process = await asyncio.create_subprocess_exec(
                *(*after(os.getpid()), *argv),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=asyncio.subprocess.STDOUT,
                env=dict(env),
                start_new_session=True,
            )
        guard.watch(process.pid)
        return cls(process, guard)

    @property
    def pid(self) -> int:
        return self._process.pid

    async def wait_exit(self) -> int:
        """The child's own exit status (negative: the signal)."""
        return await self._process.wait()

    async def wait(self) -> int:
        """The same, once no process of its group is left."""
        status = await self._process.wait()
        await self._sweep()
        return status

    async def stop(self, limit_s: float, hurry: asyncio.Event) -> None:
        """SIGTERM to the child alone (it knows its own), SIGKILL to all of the group after `limit_s` or on `hurry`.

        `wait` says when all of it is gone."""
        if self._process.returncode is None:
            self._process.terminate()
            await first((self._process.wait(), hurry.wait()), limit_s)
        group.kill(self.pid)

    async def end(self) -> None:
        """By force, unless it is over: SIGKILL, and returns when nothing of it is left."""
        if not self._gone:
            group.kill(self.pid)
            await self.wait()

    async def _sweep(self) -> None:
        """Kills what the child left of its group and waits until it is gone, its trackers last and by themselves.

        Raises Leftover after 10 s: a process in uninterruptible sleep."""
        patience = asyncio.get_running_loop().time() + group.TRACKERS_S
        try:
            async with asyncio.timeout(_SWEEP_S):
                while group.members(self.pid) or _reap(self.pid):  # who dies in between is a dead one that is reaped
                    group.kill(self.pid)
                    if asyncio.get_running_loop().time() > patience:
                        group.kill_trackers(self.pid)
                    await asyncio.sleep(group.LOOK_AGAIN_S)
        except TimeoutError:
            raise Leftover(f"processes of group {self.pid} do not die", remedy=f"look at: ps -g {self.pid}") from None
        self._gone = True
        self._guard.forget(self.pid)


async def first(waits: Iterable[Coroutine[object, object, object]], limit_s: float | None = None) -> None:
    """Returns when one of `waits` is over, or after `limit_s`; the rest is cancelled. Raises what one raised."""
    tasks = [asyncio.create_task(wait) for wait in waits]
    try:
        done, _ = await asyncio.wait(tasks, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()


def _reap(pgid: int) -> bool:
    """Whether there were dead ones among the orphans that we adopted; the leader has been waited for already."""
    found = False
    try:
        while os.waitpid(-pgid, os.WNOHANG)[0]:
            found = True
    except ChildProcessError:
        pass
    return found
