"""Who asks for short slices gets them, and nothing else changes."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from coordinator.store import prompt

T = TypeVar("T")

ROOT = Path(__file__).parents[2]


def slice_ns(thread: int = 0) -> int:
    """What the kernel has noted (sched_getattr(2)); 0 where it has no such thing."""
    assert prompt._CALLS is not None
    attr = ctypes.create_string_buffer(prompt._ATTR.size)
    assert prompt._LIBC.syscall(prompt._CALLS[1], thread, attr, prompt._ATTR.size, 0) == 0
    return int(prompt._ATTR.unpack(attr.raw)[5])


SHORT = prompt.SLICE_NS if slice_ns() else 0
"""What shows of a short slice on this kernel."""


def in_a_thread(work: Callable[[], T]) -> T:
    """So that the tests' own thread stays as it is."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()


def test_a_thread_and_what_it_starts_ask_for_short_slices() -> None:
    before = slice_ns()

    def work() -> int:
        nice = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
        assert prompt.be_prompt()
        assert slice_ns() == SHORT
        assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == nice
        return in_a_thread(slice_ns)

    assert in_a_thread(work) == SHORT
    assert slice_ns() == before


def test_a_thread_is_prompt_for_a_while() -> None:
    def work() -> tuple[int, int, int]:
        usual = slice_ns()
        with prompt.promptly():
            short = slice_ns()
        return usual, short, slice_ns()

    usual, short, after = in_a_thread(work)
    assert (short, after) == (SHORT, usual)


SCRIPT = """
import os, threading
from coordinator.store import prompt
from tests.unit.test_prompt import slice_ns
gate, done = threading.Event(), []
def other():
    gate.wait()
    done.append(slice_ns())
thread = threading.Thread(target=other)
thread.start()
os.nice(3)
prompt.all_prompt()
gate.set()
thread.join()
print(slice_ns(), *done, os.nice(0))
"""


def test_all_threads_of_a_process_do_and_stay_as_nice_as_they_were() -> None:
    """In a process of its own, so that the tests' own stays as it is."""
    shown = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=60, check=True, cwd=ROOT
    )
    own, other, nice = shown.stdout.split()
    assert (int(own), int(other)) == (SHORT, SHORT)
    assert int(nice) == min(19, os.nice(0) + 3)


def test_a_thread_that_is_gone_is_passed_over() -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    assert not prompt.be_prompt(gone.pid)
