"""What the kernel says about the pages of a process: bytes of an address range that are resident, and that are huge.

Source: `/proc/<pid>/smaps` (proc_pid_smaps(5)). On the host driver each chunk is a mapping of its own, so a range that
starts and ends on chunk boundaries is made of whole mappings.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

HUGE_FIELDS = ("AnonHugePages", "ShmemPmdMapped", "FilePmdMapped")

_HEADER = re.compile(r"([0-9a-f]+)-([0-9a-f]+) ")
_FIELD = re.compile(r"(\w+): +(\d+) kB")


class Resident(NamedTuple):
    """Bytes that have pages in this process, and those of them that huge pages map."""

    resident: int
    huge: int


class Mapping(NamedTuple):
    """One mapping of a process: `[start, end)` and its fields in bytes (`Rss`, `ShmemPmdMapped`, …)."""

    start: int
    end: int
    fields: dict[str, int]


def resident(address: int, length: int, pid: int | str = "self") -> Resident:
    """Sum over the mappings inside `[address, address + length)`.

    Raises:
        ValueError: a mapping with resident pages lies only partly in the range, so its share is not known.
        OSError: the process is gone or may not be looked at.
    """
    total = huge = 0
    for mapping in mappings(pid):
        if mapping.end <= address or mapping.start >= address + length or not mapping.fields.get("Rss"):
            continue
        if mapping.start < address or mapping.end > address + length:
            raise ValueError(f"mapping {mapping.start:#x}-{mapping.end:#x} straddles the range: widen it")
        total += mapping.fields["Rss"]
        huge += sum(mapping.fields.get(field, 0) for field in HUGE_FIELDS)
    return Resident(total, huge)


def mappings(pid: int | str = "self") -> Iterator[Mapping]:
    """All mappings of a process, in address order."""
    mapping: Mapping | None = None
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if header := _HEADER.match(line):
            if mapping is not None:
                yield mapping
            mapping = Mapping(int(header[1], 16), int(header[2], 16), {})
        elif mapping is not None and (field := _FIELD.match(line)):
            mapping.fields[field[1]] = int(field[2]) * 1024
    if mapping is not None:
        yield mapping
