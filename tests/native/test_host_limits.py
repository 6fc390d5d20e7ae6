"""The host driver in a system that refuses: limits of the kernel, a user without privileges."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.helpers.drivers import HOST, DriverCase

CHUNK = 2 << 20
ROOT = Path(__file__).parents[2]


def run_python(code: str, *args: str) -> subprocess.CompletedProcess[str]:
    """Run a script in an interpreter of its own; its output is part of the failure."""
    script = f"CHUNK = {CHUNK}\n" + textwrap.dedent(code)
    command = [sys.executable, "-c", script, *args]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(params=HOST, ids=lambda case: case.id)
def case(request: pytest.FixtureRequest) -> DriverCase:
    kind: DriverCase = request.param
    return kind


def test_running_out_of_mappings_leaves_all_as_it_was(case: DriverCase) -> None:
    run_python(
        """
        import ctypes, mmap, sys
        from native._native import DriverError, open_driver
        from tests.helpers.memory import readable, write

        libc = ctypes.CDLL(None, use_errno=True)
        libc.mmap.restype = ctypes.c_void_p
        libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
        libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
        libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        driver = open_driver("host", 0, 0, sys.argv[1])
        handles = [driver.create(CHUNK) for _ in range(8)]
        base = driver.reserve(32 * CHUNK)
        pairs = [(base + 2 * i * CHUNK, handle) for i, handle in enumerate(handles)]  # apart: each splits a mapping

        most = int(open("/proc/sys/vm/max_map_count").read())
        wall = libc.mmap(None, 2 * most * 4096, 0, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000, -1, 0)
        holes = []
        for page in range(0, 2 * most, 2):  # every other page differs, until the kernel has no mapping left
            if libc.mprotect(wall + page * 4096, 4096, 1):
                break
            holes.append(wall + page * 4096)
        failures = 0
        while True:  # and now a little more room each time, until the chunks fit
            try:
                driver.map_many(pairs)
            except DriverError as error:
                assert error.name == "ENOMEM" and "max_map_count" in error.remedy, error
                assert driver.stats().mapped_bytes == 0
                assert not any(readable(va) for va, _ in pairs), failures
                failures += 1
                assert libc.mprotect(holes.pop(), 4096, 0) == 0  # joins three mappings
            else:
                break
        assert failures >= 4, failures
        write(pairs[0][0], b"mapped")
        for _ in range(64):  # one mapping more than allowed is possible this way; even then pages can be given back
            if libc.mmap(None, 4096, 3, mmap.MAP_SHARED | mmap.MAP_ANONYMOUS, -1, 0) in (None, 2**64 - 1):
                break
        else:
            raise SystemExit("there is still room")
        driver.unmap_many([va for va, _ in pairs])
        assert not any(readable(va) for va, _ in pairs)

        libc.munmap(wall, 2 * most * 4096)
        driver.map_many(pairs)
        write(pairs[-1][0], b"works")
        driver.unmap_many([va for va, _ in pairs])
        """,
        case.backing,
    )


def test_running_out_of_descriptors_leaves_all_as_it_was(case: DriverCase) -> None:
    run_python(
        """
        import os, resource, sys
        from native._native import DriverError, open_driver

        driver = open_driver("host", 0, 8 * CHUNK, sys.argv[1])
        handle = driver.create(CHUNK)
        used = len(os.listdir("/proc/self/fd")) - 1
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (used, hard))
        for call in (lambda: driver.create(CHUNK), lambda: driver.export_handle(handle)):
            try:
                call()
            except DriverError as error:
                assert error.name == "EMFILE" and "open files" in error.remedy, error
            else:
                raise SystemExit("a descriptor was made")
        assert driver.stats().own_bytes == CHUNK
        assert driver.free_bytes() == 7 * CHUNK
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + 2, hard))
        driver.create(CHUNK)
        driver.export_handle(handle)  # the export that failed does not count
        """,
        case.backing,
    )


def test_a_user_without_privileges_gets_huge_pages_or_the_fallback() -> None:
    """In a user namespace where those are allowed; else `tmpfs` fails with a remedy and `auto` takes memfd."""
    run_python(
        """
        import os
        from native._native import DriverError, open_driver
        from tests.helpers.memory import read, write

        if os.geteuid() == 0:
            os.setgroups([])
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
        try:
            driver = open_driver("host", 0, 4 * CHUNK, "tmpfs")
        except DriverError as error:
            assert "user namespaces" in error.remedy and "memfd" in error.remedy, error
            driver = open_driver("host", 0, 4 * CHUNK, "auto")
            assert driver.backing == "memfd"
        else:
            assert driver.backing == "tmpfs"
        handle, base = driver.create(CHUNK), driver.reserve(CHUNK)
        driver.map(base, handle)
        write(base, b"unprivileged")
        assert read(base, 12) == b"unprivileged"
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            pass
        else:
            raise SystemExit("a child was left behind")
        print(driver.backing)
        """
    )
