"""`python -m native.verify DRIVER`: conformance, a restore, a canary; one report. See docs/first-npu-day.md."""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import subprocess
import sys
from pathlib import Path

import msgspec

from native._native import Driver, DriverError, layouts, open_driver
from native.verify import bench, sharing
from native.verify.report import Section, failed, page

SUITE = Path(__file__).parents[2] / "tests" / "native" / "conformance"
SUITE_TIMEOUT_S = 1800
TORCH_TIMEOUT_S = 600
VENDORS = ("ascend", "cuda")


class Told(msgspec.Struct):
    """What `engine_patch.torch_check` prints."""

    rows: tuple[tuple[str, str], ...] = ()
    failure: str = ""


def main(words: list[str] | None = None) -> int:
    """0: all went well. 1: something failed, and the report says what."""
    asked = _parser().parse_args(words)
    sections = [*_on_device(asked), *([] if asked.no_conformance else [conformance(asked.driver)])]
    when = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    text = page(asked.driver, when, sections)
    asked.report.parent.mkdir(parents=True, exist_ok=True)
    asked.report.write_text(text)
    sys.stdout.write(f"{text}\nThis report is in {asked.report}: please paste it whole into an issue.\n")
    return 1 if failed(sections) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m native.verify", description=__doc__)
    parser.add_argument("driver", choices=("ascend", "cuda", "host"))
    parser.add_argument("--device", type=int, default=0, help="number of the device (default 0)")
    parser.add_argument("--library", default="", help="path of the vendor's library")
    parser.add_argument("--mib", type=int, default=1024, help="bytes to restore, in MiB (default 1024)")
    parser.add_argument("--chunk-mib", type=int, default=64, help="bytes of a chunk, in MiB (default 64)")
    parser.add_argument("--report", type=Path, default=Path(".vnpu/verify.md"))
    parser.add_argument("--no-conformance", action="store_true", help="only what needs no checkout")
    return parser


def _on_device(asked: argparse.Namespace) -> list[Section]:
    try:
        driver = open_driver(asked.driver, asked.device, library=asked.library)
        found = facts(driver)
    except DriverError as error:
        return [Section("Driver", failure=str(error))]
    chunk = asked.chunk_mib << 20
    sections = [found, bench.attempt("Sharing", lambda: sharing.shared(driver, asked.library, driver.granularity))]
    try:
        with bench.bench(driver, (asked.mib << 20) // chunk * chunk, chunk) as (on, creating):
            sections += [
                bench.attempt("Pages", lambda: bench.pages(on, creating)),
                bench.attempt("Restore", lambda: bench.restore(on)),
                bench.attempt("Canary", lambda: bench.canary(on)),
            ]
    except DriverError as error:
        sections.append(Section("Bench", failure=str(error)))
    sections.append(left(driver))
    return [*sections, tensors(asked)] if asked.driver in VENDORS else sections


def facts(driver: Driver) -> Section:
    """What the driver found."""
    rows = (
        ("driver, device", f"{driver.name}, {driver.device}"),
        ("backing", driver.backing),
        ("granularity", f"{driver.granularity} B"),
        ("free", f"{driver.free_bytes() >> 20} MiB"),
        ("host", f"{platform.machine()}, Linux {platform.release()}, {os.cpu_count()} CPUs"),
        ("declared layouts", f"{len(layouts())}"),
    )
    return Section("Driver", rows)


def left(driver: Driver) -> Section:
    """Whether everything was given back."""
    stats = driver.stats()
    held = {name: getattr(stats, name) for name in ("handles", "reservations", "mapped_bytes", "own_bytes")}
    failure = "" if not any(held.values()) else f"left behind: {held}"
    return Section("Left behind", (("free", f"{driver.free_bytes() >> 20} MiB"),), failure)


def tensors(asked: argparse.Namespace) -> Section:
    """Whether torch's tensors lie in pages of ours, found out by a process that may import torch."""
    command = [sys.executable, "-m", "engine_patch.torch_check", asked.driver, str(asked.device), asked.library]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TORCH_TIMEOUT_S, check=False)
        found = msgspec.json.decode(done.stdout.strip().rpartition("\n")[2], type=Told)
    except subprocess.TimeoutExpired:
        return Section("Torch", failure=f"torch did not end in {TORCH_TIMEOUT_S} s")
    except msgspec.MsgspecError:
        return Section("Torch", failure=f"it ended with {done.returncode}", lines=tuple(done.stderr.splitlines()[-20:]))
    return Section("Torch", found.rows, found.failure)


def conformance(driver: str) -> Section:
    """The suite that every driver passes, on this machine's device."""
    if not SUITE.exists():
        return Section("Conformance", failure=f"{SUITE} is not there: run this in a checkout")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=line", "-rfE", str(SUITE)]
    command += [f"--ignore={SUITE / 'test_failures.py'}"]  # no device fails to order
    try:
        done = subprocess.run(
            command, env={**os.environ, "VNPU_VERIFY_DRIVER": driver}, cwd=SUITE.parents[2], capture_output=True,
            text=True, timeout=SUITE_TIMEOUT_S, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return Section("Conformance", failure=f"the suite did not end in {SUITE_TIMEOUT_S} s")
    told = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR")) or " in " in line]
    failure = "" if done.returncode == 0 else f"pytest ended with {done.returncode}"
    return Section("Conformance", failure=failure, lines=tuple(told[-60:]))


if __name__ == "__main__":
    sys.exit(main())
