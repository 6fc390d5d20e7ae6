"""Which vendor library is opened, what is said where it cannot be, and that every number has a remedy."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from native._native import layouts

ROOT = Path(__file__).parents[2]
OPEN = """
import sys
from native._native import DriverError, open_driver
for library in sys.argv[2:]:
    try:
        open_driver(sys.argv[1], library=library)
    except DriverError as error:
        print(error.call, error.name, error)
"""


def said(*arguments: str, **environment: str) -> str:
    """What opening each of `arguments[1:]` as the library of the driver `arguments[0]` says, one line each."""
    done = subprocess.run(
        [sys.executable, "-c", OPEN, *arguments], env={**os.environ, **environment}, cwd=ROOT, capture_output=True,
        text=True, timeout=100, check=True,
    )  # fmt: skip
    return done.stdout


@pytest.mark.parametrize(
    ("driver", "variable", "soname"),
    [("ascend", "VNPU_ASCENDCL", "libascendcl.so"), ("cuda", "VNPU_LIBCUDA", "libcuda.so.1")],
)
def test_the_argument_goes_before_the_environment(driver: str, variable: str, soname: str, tmp_path: Path) -> None:
    named, told = tmp_path / "named.so", tmp_path / "told.so"
    by_argument = said(driver, str(named), **{variable: str(told)})
    assert str(named) in by_argument
    assert str(told) not in by_argument
    by_environment = said(driver, "", **{variable: str(told)})
    assert str(told) in by_environment
    for words in ("open_driver ENOENT", f"driver '{driver}'", variable, "driver 'host'"):
        assert words in by_environment
    empty = said(driver, "", **{variable: ""})
    assert str(told) not in empty
    assert soname in empty or not empty, "by the name the vendor gives it, which this machine may have"


def test_a_library_of_something_else_is_refused_with_the_function_it_lacks() -> None:
    assert "libc.so.6 has no function aclInit" in said("ascend", "libc.so.6")
    lacking = said("cuda", "libc.so.6")
    assert "ENOSYS" in lacking
    assert "libc.so.6 has no function cuInit" in lacking
    assert "driver 525" in lacking


def test_layouts_name_structures_fields_and_values() -> None:
    table = layouts()
    assert (table["CUmemAllocationProp"], table["CUmemAllocationProp.location"]) == (32, 8)
    assert (table["aclrtPhysicalMemProp"], table["aclrtPhysicalMemProp.location"]) == (32, 12)
    assert (table["aclrtMemLocation.id"], table["CUmemLocation.id"]) == (0, 4)
    assert table["ACL_HBM_MEM_HUGE"] == 4
