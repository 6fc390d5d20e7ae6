"""The embedded etcd as a child that a keeper can keep: the same folder and ports across restarts."""

from __future__ import annotations

import asyncio
import os
import signal

from coordinator.embedded import EmbeddedEtcd
from coordinator.supervise.child import first
from coordinator.supervise.guard import Guard


class EtcdChild:
    """One life of `etcd`; it leads its own process group."""

    def __init__(self, etcd: EmbeddedEtcd, guard: Guard) -> None:
        self._etcd = etcd
        self._guard = guard
        self._pid = etcd.pid
        self._pidfd = os.pidfd_open(self._pid)
        self._gone = False

    @classmethod
    async def spawn(cls, etcd: EmbeddedEtcd, guard: Guard) -> EtcdChild:
        """Returns when etcd answers. Raises as `EmbeddedEtcd.start` does."""
        await etcd.start()
        guard.watch(etcd.pid)
        return cls(etcd, guard)

    @property
    def pid(self) -> int:
        return self._pid

    async def wait_exit(self) -> int:
        loop, ended = asyncio.get_running_loop(), asyncio.Event()
        watched = os.dup(self._pidfd)  # two may wait at once, a loop knows a descriptor only once
        loop.add_reader(watched, ended.set)
        try:
            await ended.wait()
        finally:
            loop.remove_reader(watched)
            os.close(watched)
        return self._status()

    async def wait(self) -> int:
        status = await self.wait_exit()
        await self._etcd.stop()
        self._guard.forget(self._pid)
        self._gone = True
        os.close(self._pidfd)
        return status

    async def stop(self, limit_s: float, hurry: asyncio.Event) -> None:
        os.kill(self._pid, signal.SIGTERM)
        os.kill(self._pid, signal.SIGCONT)  # a stopped process would not see SIGTERM
        await first((self.wait_exit(), hurry.wait()), limit_s)
        self._kill()

    async def end(self) -> None:
        if not self._gone:
            self._kill()
            await self.wait()

    def _kill(self) -> None:
        signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def _status(self) -> int:
        """Looked at, not taken: `EmbeddedEtcd` waits for its own child."""
        ended = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOWAIT)
        if ended is None:
            return 0
        return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status
