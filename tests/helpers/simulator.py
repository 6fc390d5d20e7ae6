"""The simulated vendor libraries seen from Python: where the simulated card lies, and the controls of a library."""

from __future__ import annotations

import atexit
import ctypes
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from tests.helpers.vendor_libraries import library

CHUNK = 2 << 20
"""The cards' granularity, in bytes."""
VARIABLES = {"ascend": "VNPU_ASCENDCL", "cuda": "VNPU_LIBCUDA"}
"""By which the drivers are told where the library lies."""
SHM = Path("/dev/shm")
SHM_ENOUGH = 1 << 30


@cache
def card() -> Path:
    """This process's card, in memory where there is room; gone when the process ends. From now on in `os.environ`."""
    if "SIMULATED_CARD" in os.environ:
        return Path(os.environ["SIMULATED_CARD"])
    roomy = SHM.is_dir() and os.access(SHM, os.W_OK) and shutil.disk_usage(SHM).free > SHM_ENOUGH
    folder = Path(tempfile.mkdtemp(prefix="simulated-card-", dir=SHM if roomy else None))
    os.environ["SIMULATED_CARD"] = str(folder)
    owner = os.getpid()
    atexit.register(lambda: shutil.rmtree(folder, ignore_errors=True) if os.getpid() == owner else None)
    return folder


def environment(vendor: str, **more: str) -> dict[str, str]:
    """What a process needs in its environment to use this process's card through the simulated library of `vendor`."""
    return {**os.environ, "SIMULATED_CARD": str(card()), VARIABLES[vendor]: str(library(vendor)), **more}


class Simulator:
    """The controls of one simulated library in this process; `lib` calls its functions as a program in C would."""

    def __init__(self, vendor: str) -> None:
        card()
        self.path = library(vendor)
        self.lib = ctypes.CDLL(str(self.path))
        self.lib.simulator_calls.restype = ctypes.c_uint64
        self.lib.simulator_failed.restype = ctypes.c_char_p
        self.lib.simulator_books.restype = ctypes.c_size_t
        self.lib.simulator_books.argtypes = [ctypes.c_char_p, ctypes.c_size_t]
        self.lib.simulator_fail.argtypes = [ctypes.c_char_p, ctypes.c_uint64, ctypes.c_int]
        self.lib.simulator_fail_also.argtypes = self.lib.simulator_fail.argtypes
        self.lib.simulator_capacity.argtypes = [ctypes.c_uint64]

    def fail(self, nth: int, code: int, call: str = "") -> None:
        """The `nth` call from now (1: the next) of `call` (empty: of any) fails with `code` and without effect."""
        self.lib.simulator_fail(call.encode(), nth, code)

    def fail_also(self, nth: int, code: int, call: str = "") -> None:
        """The same, beside what is ordered already."""
        self.lib.simulator_fail_also(call.encode(), nth, code)

    def forgive(self) -> None:
        """What `fail` ordered and did not happen yet will not happen."""
        self.lib.simulator_fail(b"", 0, 0)

    def failed(self) -> str:
        """The call that failed last by order; empty where none did since the last order."""
        return bytes(self.lib.simulator_failed()).decode()

    def calls(self) -> int:
        """Calls so far that could have been ordered to fail."""
        return int(self.lib.simulator_calls())

    @contextmanager
    def held(self) -> Iterator[None]:
        """Streams of this process do nothing meanwhile, whoever waits for them."""
        self.lib.simulator_hold(1)
        try:
            yield
        finally:
            self.lib.simulator_hold(0)

    @contextmanager
    def capacity(self, size: int) -> Iterator[None]:
        """Each device has `size` bytes meanwhile, for every process."""
        before = int(self.books()["capacity"])
        self.lib.simulator_capacity(size)
        try:
            yield
        finally:
            self.lib.simulator_capacity(before)

    def books(self) -> dict[str, Any]:
        """`capacity`, `used` (bytes by device), `chunks` (of all processes) and `process` (what this one holds)."""
        room = 1 << 20
        out = ctypes.create_string_buffer(room)
        assert self.lib.simulator_books(out, room) < room
        books: dict[str, Any] = json.loads(out.value)
        return books
