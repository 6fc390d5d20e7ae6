"""The vendors' structures and enumerations as the drivers declare them, against the vendors' own headers."""

from __future__ import annotations

import subprocess
from functools import cache
from pathlib import Path

import pytest

from native._native import layouts
from tests.helpers.vendor_headers import acl_include, compiler, cuda_include

VENDORS = {"ascend": ("acl/acl.h", acl_include), "cuda": ("cuda.h", cuda_include)}


def vendor_of(name: str) -> str:
    return "ascend" if name.lower().startswith("acl") else "cuda"


def names(vendor: str) -> list[str]:
    return [name for name in layouts() if vendor_of(name) == vendor]


def expression(name: str) -> str:
    """What the header says of it: the offset of a member, the size of a type, or a value."""
    structure, dot, member = name.partition(".")
    if dot:
        return f"offsetof({structure}, {member})"
    return name if name.isupper() else f"sizeof({name})"


@cache
def header_says(vendor: str, include: Path) -> dict[str, int]:
    header, _ = VENDORS[vendor]
    lines = [f"#include <cstddef>\n#include <cstdio>\n#include <{header}>\nint main() {{"]
    lines += [f'    std::printf("{name} %lld\\n", (long long)({expression(name)}));' for name in names(vendor)]
    program = include.parent / f"layouts-{vendor}"
    command = [*compiler(), "-x", "c++", "-", "-isystem", str(include), "-o", str(program)]
    source = "\n".join([*lines, "}"])
    done = subprocess.run(command, input=source, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    said = subprocess.run([str(program)], capture_output=True, text=True, timeout=60, check=True).stdout
    program.unlink()
    return {name: int(value) for name, value in (line.split() for line in said.splitlines())}


@pytest.mark.parametrize("vendor", VENDORS)
def test_what_the_drivers_declare_is_what_the_header_says(vendor: str) -> None:
    ours = {name: value for name, value in layouts().items() if vendor_of(name) == vendor}
    assert len(ours) > 15
    assert header_says(vendor, VENDORS[vendor][1]()) == ours


def test_every_structure_has_a_size_and_all_that_is_in_it() -> None:
    """A member that is forgotten would not be noticed otherwise."""
    found = layouts()
    for structure, members in {
        "CUmemAllocationProp": {"type", "requestedHandleTypes", "location", "win32HandleMetaData", "allocFlags"},
        "CUmemAccessDesc": {"location", "flags"},
        "CUmemLocation": {"type", "id"},
        "aclrtPhysicalMemProp": {"handleType", "allocationType", "memAttr", "location", "reserve"},
        "aclrtMemLocation": {"id", "type"},
        "aclrtMemAccessDesc": {"flags", "location", "rsv"},
    }.items():
        assert structure in found
        assert {name.partition(".")[2] for name in found if name.startswith(f"{structure}.")} == members
