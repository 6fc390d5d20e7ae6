"""The drivers that the conformance suite runs on: a later driver joins by one more `DriverCase`."""

from __future__ import annotations

from dataclasses import dataclass

from native._native import Driver, open_driver


@dataclass(frozen=True)
class DriverCase:
    """How to open a driver; `limit` bounds its own chunks in bytes (0: not)."""

    id: str
    name: str
    backing: str = "auto"

    def open(self, limit: int = 0) -> Driver:
        return open_driver(self.name, 0, limit, self.backing)


CASES = (DriverCase("host-tmpfs", "host", "tmpfs"), DriverCase("host-memfd", "host", "memfd"))
