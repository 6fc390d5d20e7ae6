"""The simulated vendor libraries: built from `tests/vendor` when first wanted, kept in `build/vendor` by content.

`python -m tests.helpers.vendor_libraries` builds both and prints their paths.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from functools import cache
from pathlib import Path

from tests.helpers.vendor_headers import CACHE, ROOT, acl_include, compiler, cuda_include, locked

SOURCES = ROOT / "tests" / "vendor"
FLAGS = (
    "-O0",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-fPIC",
    "-fvisibility=hidden",
    "-DFUNC_VISIBILITY",
    "-shared",
    "-pthread",
)
SONAMES = {"ascend": "libascendcl.so", "cuda": "libcuda.so.1"}
INCLUDES = {"ascend": acl_include, "cuda": cuda_include}


@cache
def library(vendor: str) -> Path:
    """Path of the simulated library of `ascend` or `cuda`, with the vendor's file name."""
    files = sorted([*(SOURCES / "common").iterdir(), *(SOURCES / vendor).iterdir()])
    include = INCLUDES[vendor]()
    command = [*compiler(), *FLAGS, f"-I{SOURCES / 'common'}", "-isystem", str(include)]
    command += [str(file) for file in files if file.suffix == ".cpp"]
    command += [f"-Wl,-soname,{SONAMES[vendor]}"]
    key = hashlib.sha256("\0".join(command).encode() + b"".join(file.read_bytes() for file in files)).hexdigest()[:16]
    built = CACHE / f"simulated-{vendor}-{key}" / SONAMES[vendor]
    with locked(f"simulated-{vendor}"):
        if not built.exists():
            _build(command, built)
    return built


def _build(command: list[str], built: Path) -> None:
    built.parent.mkdir(exist_ok=True)
    unfinished = built.with_suffix(".unfinished")
    done = subprocess.run([*command, "-o", str(unfinished)], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, f"{built.name} could not be built\n{done.stderr}"
    unfinished.rename(built)


if __name__ == "__main__":
    for one in SONAMES:
        sys.stdout.write(f"{library(one)}\n")
