"""`make sanitize`: the native module, built with the compiler's sanitizers, under its tests and the daemon's.

    python -m tests.sanitize [address | thread] [pytest's arguments]

`address`: AddressSanitizer and UndefinedBehaviorSanitizer; `thread`: ThreadSanitizer. The instrumented build lives in
an environment of its own (`build/sanitize/<kind>`), which borrows every package of the one that this runs in. What any
process of the tests is found doing, daemons and engines that were killed included, is printed at the end.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import sysconfig
import venv
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "build" / "sanitize"
NATIVE = ("tests/native/conformance", *(f"tests/native/test_{name}.py" for name in (
    "arena", "copy", "digests", "hook", "host_driver", "host_limits", "ordered_copy", "pages_folder", "vendor_library"
)))  # fmt: skip
DAEMON = ("tests/integration/daemon",)


@dataclass(frozen=True)
class Kind:
    """`flags`: for -fsanitize; `libraries`: loaded before Python; `options`: by environment variable; `tests`: what is
    run unless something else is asked for."""

    flags: str
    libraries: tuple[str, ...]
    options: dict[str, str]
    tests: tuple[str, ...]


KINDS = {
    # Leaks are not looked for: Python frees little of its own at its end.
    "address": Kind(
        "address,undefined",
        ("libasan.so", "libubsan.so", "libstdc++.so"),
        {
            "ASAN_OPTIONS": "detect_leaks=0:handle_segv=0:allocator_may_return_null=1",
            "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
            "PYTHONMALLOC": "malloc",
        },
        (*NATIVE, *DAEMON),
    ),
    "thread": Kind(
        "thread",
        ("libtsan.so", "libstdc++.so"),
        {"TSAN_OPTIONS": f"second_deadlock_stack=1:suppressions={Path(__file__).with_suffix('.tsan')}"},
        NATIVE,
    ),
}


def built(name: str, kind: Kind) -> Path:
    """The environment's Python; built anew where a source has changed."""
    folder = FOLDER / name
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=False)
        paths = sysconfig.get_paths(vars={"base": str(folder), "platbase": str(folder)})
        borrowed = [path for path in sys.path if path.endswith("site-packages")]
        (Path(paths["purelib"]) / "borrowed.pth").write_text("\n".join(borrowed) + "\n")
    pip = [str(python), "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    pip += [f"-Cbuild-dir={folder / 'cmake'}", f"-Ccmake.define.VNPU_SANITIZE={kind.flags}", "-Cinstall.strip=false"]
    pip += ["-Ccmake.define.CMAKE_CXX_FLAGS_RELEASE=-O1"]  # half the time to compile, and stacks that can be read
    subprocess.run(
        [*pip, "--editable", str(ROOT)],
        check=True,
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"},
    )
    return python


def library(name: str) -> str:
    """Where the compiler has it."""
    compiler = os.environ.get("CXX", "g++")
    found = subprocess.run([compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    return found.stdout.strip()


def run(name: str, kind: Kind, tests: list[str]) -> int:
    python = built(name, kind)
    reports = FOLDER / f"{name}-reports"
    reports.mkdir(exist_ok=True)
    for old in reports.iterdir():
        old.unlink()
    options = {
        key: f"{value}:log_path={reports / 'report'}" if key.endswith("_OPTIONS") else value
        for key, value in kind.options.items()
    }
    environ = {**os.environ, **options, "LD_PRELOAD": ":".join(library(one) for one in kind.libraries)}
    command = [str(python), "-m", "pytest", "-q", "-m", "not engine and not system and not campaign"]
    command += ["-p", "no:cacheprovider", *(tests or kind.tests)]
    if name == "thread":  # its shadow memory has no room for addresses that are drawn as wide as newer kernels do
        command = ["setarch", platform.machine(), "--addr-no-randomize", *command]
    status = subprocess.run(command, cwd=ROOT, env=environ, check=False).returncode
    found = sorted(reports.iterdir())
    for report in found:
        sys.stdout.write(f"\n{report}\n{report.read_text(errors='replace')}\n")
    sys.stdout.write(f"{name}: {len(found)} processes with findings\n")
    return status or bool(found)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sanitize", description=__doc__)
    parser.add_argument("kind", choices=KINDS, nargs="?", default="address")
    given, tests = parser.parse_known_args()
    return run(given.kind, KINDS[given.kind], tests)


if __name__ == "__main__":
    raise SystemExit(main())
