"""Threads that pass a token on, or keep a lease, get a processor as soon as they wake.

They work for microseconds at a time, beside engines that keep every processor busy for as long as a forward pass takes.
Linux gives such a thread its turn by the *slice* that it asks for (EEVDF): at the usual one of some milliseconds each
hop of a switch, from agent to daemon to etcd to leader, may wait that long for the processor. A thread that asks for a
short slice has no more of the processor than before, but sooner: from 6.12 on it may take the place of one with a
longer slice when it wakes (`PREEMPT_SHORT`; sched(7), sched_setattr(2): `sched_runtime` of SCHED_OTHER). No privilege
is needed. Older kernels take the call and change nothing.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SLICE_NS = 100_000
"""The shortest that the kernel grants."""
USUAL = 0
"""The kernel's own."""
_CALLS = {"x86_64": (314, 315), "aarch64": (274, 275)}.get(os.uname().machine)
"""Numbers of sched_setattr and sched_getattr."""
_ATTR = struct.Struct("=IIQiIQQQ")
"""struct sched_attr: size, policy, flags, nice, priority, runtime, deadline, period."""
_LIBC = ctypes.CDLL(None, use_errno=True)


def be_prompt(thread: int = 0) -> bool:
    """The thread of this id (0: the caller's) asks for short slices; so do threads that it starts, and what it execs.
    Its nice value stays. False: this kernel or machine does not have it, or the thread is no ordinary one."""
    return _ask_for(SLICE_NS, thread)


@contextmanager
def promptly() -> Iterator[None]:
    """Within it the caller's thread is prompt; then it has the usual slices: of a thread that computes at other
    times."""
    be_prompt()
    try:
        yield
    finally:
        _ask_for(USUAL, 0)


def _ask_for(slice_ns: int, thread: int) -> bool:
    if _CALLS is None:
        return False
    setattr_, getattr_ = _CALLS
    attr = ctypes.create_string_buffer(_ATTR.size)
    if _LIBC.syscall(getattr_, thread, attr, _ATTR.size, 0) != 0:
        return False
    size, policy, flags, nice, priority, _, deadline, period = _ATTR.unpack(attr.raw)
    if policy != os.SCHED_OTHER:
        return False
    wanted = _ATTR.pack(size, policy, flags, nice, priority, slice_ns, deadline, period)
    return bool(_LIBC.syscall(setattr_, thread, wanted, 0) == 0)


def all_prompt() -> None:
    """`be_prompt` for every thread that this process has now: of one that only hands on what others compute."""
    for thread in Path("/proc/self/task").iterdir():
        be_prompt(int(thread.name))
