"""The processes of one engine: who is who, and that none outlives its parent."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
from pathlib import Path

_PR_SET_PDEATHSIG = 1


def is_child() -> bool:
    """Whether this process was started by the engine's API server (or by one of its children)."""
    return multiprocessing.parent_process() is not None


def die_with_parent() -> None:
    """In EngineCore and workers: SIGKILL when the thread that started this process is gone (prctl(2)).

    vLLM starts both from main threads, so that is when the parent ends, however it ends. Does nothing in the API
    server. Ends this process at once if the parent was gone before the signal was armed.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent.pid:
        os.kill(os.getpid(), signal.SIGKILL)


def boot_id() -> str:
    """This boot of the machine (random(4)): with a pid and its start time it names a process for good."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
