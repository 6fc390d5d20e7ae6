"""The drivers that the conformance suite runs on: a later driver joins by one more `DriverCase`.

With `VNPU_VERIFY_DRIVER=ascend` or `cuda` in the environment (`make verify-device`) it is that machine's own device
instead, through the library that the driver finds by itself.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from native._native import Driver, open_driver
from tests.helpers.simulator import Simulator, card, environment
from tests.helpers.vendor_libraries import library

HINT = 20 << 40
"""An address that nothing else is put at, and one of those that Ascend lets be asked for (16 to 24 TiB)."""


@dataclass(frozen=True)
class DriverCase:
    """How to open a driver; `limit` bounds its own chunks in bytes (0: not)."""

    id: str
    name: str
    backing: str = "auto"
    simulated: bool = False

    def open(self, limit: int = 0) -> Driver:
        if self.simulated:
            card()
        return open_driver(self.name, 0, limit, self.backing, str(library(self.name)) if self.simulated else "")

    def environment(self, **more: str) -> dict[str, str]:
        """Of a process that opens the same: `case_named(id).open()`."""
        return environment(self.name, **more) if self.simulated else {**os.environ, **more}

    def simulator(self) -> Simulator | None:
        return Simulator(self.name) if self.simulated else None

    @property
    def knows_chunks(self) -> bool:
        """Whether what was exported tells which chunk it is, so that importing it twice is noticed."""
        return self.name != "cuda"


ALL = (
    DriverCase("host-tmpfs", "host", "tmpfs"),
    DriverCase("host-memfd", "host", "memfd"),
    DriverCase("ascend-simulated", "ascend", simulated=True),
    DriverCase("cuda-simulated", "cuda", simulated=True),
)
HOST = ALL[:2]
SIMULATED = ALL[2:]
REAL = os.environ.get("VNPU_VERIFY_DRIVER", "")
CASES = (DriverCase(f"{REAL}-device", REAL),) if REAL else ALL


def case_named(id: str) -> DriverCase:
    return next(case for case in (*CASES, *ALL) if case.id == id)
