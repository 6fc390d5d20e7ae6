"""`vnpu down`: asks the `vnpu up` of a folder to end in order, and waits until nothing of it is left."""

from __future__ import annotations

import os
import select
import signal
import time
from contextlib import ExitStack

from rich.console import Console
from rich.markup import escape

from coordinator.errors import VnpuError
from coordinator.supervise.layout import Process, RunDir

HURRY_S = 60.0
"""What killing everything may take; four kinds of processes are swept, each within 10 s."""


class NotDown(VnpuError):
    """Something of the node is still there."""


def down(run_dir: RunDir, console: Console, limit_s: float, *, now: bool) -> int:
    """0, also where nothing runs. What lingers after `limit_s` is killed, at once with `now`.

    Raises:
        NotDown: the node does not end even so, or leaves a process.
    """
    pid = run_dir.owner()
    if not pid:
        console.print(f"no node is running in {escape(str(run_dir.root))}", highlight=False, soft_wrap=True)
        return 0
    with ExitStack() as stack:
        node = _pidfd(pid, stack)
        run = run_dir.run_of(pid)
        parts = {fd: part for part in (run.processes if run else ()) if (fd := _pidfd(part.pid, stack))}
        if node and run_dir.owner() == pid:  # the same still has it: the descriptor is its
            _end(_Ending(node, parts, console), pid, limit_s, now=now)
    console.print("stopped")
    return 0


def _pidfd(pid: int, stack: ExitStack) -> int:
    """0 where there is no such process."""
    if not pid:
        return 0
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return 0
    stack.callback(os.close, fd)
    return fd


def _end(ending: _Ending, pid: int, limit_s: float, *, now: bool) -> None:
    ending.tell(f"stopping the node (pid {pid})")
    signal.pidfd_send_signal(ending.node, signal.SIGTERM)
    signal.pidfd_send_signal(ending.node, signal.SIGCONT)  # one that Ctrl-Z stopped would not see it
    if now or not ending.wait(limit_s):
        ending.tell("killing what lingers")
        _hurry(ending.node)
        if not ending.wait(HURRY_S):
            raise NotDown(f"`vnpu up` (pid {pid}) does not end", remedy=f"kill -KILL {pid}: its guard then ends all")
    if left := ending.left():
        named = ", ".join(f"{part.name} (pid {part.pid})" for part in left)
        raise NotDown(f"still there: {named}", remedy="look at it: vnpu doctor")


def _hurry(node: int) -> None:
    """The second signal; another number than the first, for two of a kind may arrive as one."""
    try:
        signal.pidfd_send_signal(node, signal.SIGHUP)
    except ProcessLookupError:
        return


class _Ending:
    """Watches processes end by their descriptors, and says each end."""

    def __init__(self, node: int, parts: dict[int, Process], console: Console) -> None:
        self.node = node
        self._parts = dict(parts)
        self._console = console
        self._poll = select.poll()
        for fd in (node, *parts):
            self._poll.register(fd, select.POLLIN)

    def tell(self, text: str) -> None:
        self._console.print(escape(text), highlight=False, soft_wrap=True)

    def wait(self, limit_s: float) -> bool:
        """Whether the node itself has ended within `limit_s`."""
        until = time.monotonic() + limit_s
        while (left := until - time.monotonic()) > 0:
            if self._look(left):
                return True
        return False

    def left(self) -> list[Process]:
        """Parts that outlive the node."""
        self._look(0.0)
        return list(self._parts.values())

    def _look(self, limit_s: float) -> bool:
        over = {fd for fd, _ in self._poll.poll(limit_s * 1000)}
        for fd in over & self._parts.keys():
            self._poll.unregister(fd)
            self.tell(f"{self._parts.pop(fd).name}: stopped")
        return self.node in over
