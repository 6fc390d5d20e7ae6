"""`make sanitize`: the native module, built with AddressSanitizer and UndefinedBehaviorSanitizer, under its tests and
the daemon's.

    python -m tests.sanitize [pytest's arguments]

The instrumented build lives in an environment of its own (`build/sanitize`), which borrows every package of the one
that this runs in. What any process of the tests is found doing, daemons and engines that were killed included, is
printed at the end.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "build" / "sanitize"
NAMES = ("arena", "copy", "digests", "hook", "host_driver", "host_limits", "ordered_copy", "pages_folder")
TESTS = ("tests/native/conformance", *(f"tests/native/test_{name}.py" for name in NAMES), "tests/integration/daemon")
IMPOSSIBLE = "tests/native/test_host_limits.py::test_running_out_of_mappings_leaves_all_as_it_was"
"""A process that may not map anything any more: AddressSanitizer, which has to, ends it."""
LIBRARIES = ("libasan.so", "libubsan.so", "libstdc++.so")
"""Loaded before Python, which is not instrumented."""
OPTIONS = {
    # Leaks are not looked for: Python frees little of its own at its end.
    "ASAN_OPTIONS": "detect_leaks=0:handle_segv=0:allocator_may_return_null=1",
    "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
}


def built() -> Path:
    """The environment's Python; its module is built anew where a source has changed."""
    python = FOLDER / "venv" / "bin" / "python"
    if not python.exists():
        venv.create(FOLDER / "venv", with_pip=False)
        base = str(FOLDER / "venv")
        purelib = sysconfig.get_path("purelib", vars={"base": base, "platbase": base})
        borrowed = [path for path in sys.path if path.endswith("site-packages")]
        (Path(purelib) / "borrowed.pth").write_text("\n".join(borrowed) + "\n")
    pip = [str(python), "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    pip += [f"-Cbuild-dir={FOLDER / 'cmake'}", "-Ccmake.define.VNPU_SANITIZE=address,undefined"]
    pip += ["-Cinstall.strip=false"]
    pip += ["-Ccmake.define.CMAKE_CXX_FLAGS_RELEASE=-O1"]  # half the time to compile, and stacks that can be read
    tools = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run([*pip, "--editable", str(ROOT)], check=True, env={**os.environ, "PATH": tools})
    return python


def library(name: str) -> str:
    """Where the compiler has it."""
    compiler = os.environ.get("CXX", "g++")
    found = subprocess.run([compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    return found.stdout.strip()


def main() -> int:
    python = built()
    reports = FOLDER / "reports"
    reports.mkdir(exist_ok=True)
    for old in reports.iterdir():
        old.unlink()
    environ = os.environ | {name: f"{value}:log_path={reports / 'report'}" for name, value in OPTIONS.items()}
    environ |= {"LD_PRELOAD": ":".join(map(library, LIBRARIES)), "PYTHONMALLOC": "malloc"}
    command = [str(python), "-m", "pytest", "-q", "-m", "not engine and not system and not campaign"]
    command += ["-p", "no:cacheprovider", "--deselect", IMPOSSIBLE, *(sys.argv[1:] or TESTS)]
    status = subprocess.run(command, cwd=ROOT, env=environ, check=False).returncode
    found = sorted(reports.iterdir())
    for report in found:
        sys.stdout.write(f"\n{report}\n{report.read_text(errors='replace')}\n")
    sys.stdout.write(f"{len(found)} processes with findings\n")
    return status or bool(found)


if __name__ == "__main__":
    raise SystemExit(main())
