"""`python -m native.verify`: what `make verify-device` runs, on drivers that every machine has."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from native._native import Driver, open_driver
from native.verify import bench
from native.verify.__main__ import main
from native.verify.report import Section, page
from tests.helpers.simulator import VARIABLES, environment

ROOT = Path(__file__).parents[2]
SMALL = ("--mib", "16", "--chunk-mib", "2", "--no-conformance")
SECTIONS = ("Driver", "Sharing", "Pages", "Restore", "Canary", "Left behind")


def verify(driver: str, *more: str, report: Path) -> subprocess.CompletedProcess[str]:
    """In a process of its own, since a process opens one library of a vendor."""
    command = [sys.executable, "-m", "native.verify", driver, *SMALL, "--report", str(report), *more]
    env = environment(driver) if driver in VARIABLES else os.environ
    return subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)


@pytest.mark.parametrize("driver", ["host", "ascend", "cuda"])
def test_the_report_tells_of_every_part(driver: str, tmp_path: Path) -> None:
    report = tmp_path / "deep" / "report.md"
    done = verify(driver, report=report)
    assert done.returncode == 0, done.stdout + done.stderr
    text = report.read_text()
    assert text in done.stdout
    assert "all of it went well" in text
    for title in (*SECTIONS, *(["Torch"] if driver in VARIABLES else [])):
        assert f"## {title}: ok" in text
    assert ("sees no such device here: not run" in text) == (driver in VARIABLES)


def test_a_device_that_is_not_there_is_a_report_too(tmp_path: Path) -> None:
    report = tmp_path / "report.md"
    done = verify("cuda", "--library", str(tmp_path / "none.so"), report=report)
    assert done.returncode == 1
    text = report.read_text()
    assert "**Verdict:** FAILED: Driver." in text
    assert "VNPU_LIBCUDA" in text
    assert text in done.stdout


def test_what_does_not_fit_fails_and_leaves_nothing(tmp_path: Path) -> None:
    report = tmp_path / "report.md"
    words = ["host", "--mib", str(1 << 40), "--chunk-mib", "2", "--no-conformance", "--report", str(report)]
    assert main(words) == 1
    assert "## Bench: FAILED" in report.read_text()
    assert "## Left behind: ok" in report.read_text()


def test_the_canary_sees_a_byte_that_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pattern is other than what its CRC was taken of: as if a byte had been lost on the way."""
    real = bench.fill
    monkeypatch.setattr(bench, "fill", lambda address, size: real(address, size) ^ 1)
    with bench.bench(open_driver("host"), 4 << 20, 2 << 20) as (on, _):
        assert "came back" in bench.canary(on).failure


def test_the_canary_sees_a_chunk_that_was_not_wiped(monkeypatch: pytest.MonkeyPatch) -> None:
    with bench.bench(open_driver("host"), 4 << 20, 2 << 20) as (on, _):
        monkeypatch.setattr(bench, "_crc_of_zeros", lambda scratch, size: 1)
        assert "not zero" in bench.canary(on).failure


def test_a_page_names_what_failed() -> None:
    text = page("cuda", "today", [Section("A", (("x", "1"),)), Section("B", failure="why", lines=("one", "two"))])
    assert "**Verdict:** FAILED: B." in text
    assert "## A: ok" in text
    assert "| x | 1 |" in text
    assert "## B: FAILED\n\n**why**\n" in text
    assert "```\none\ntwo\n```" in text


def test_a_refusal_is_a_section() -> None:
    driver: Driver = open_driver("host")

    def step() -> Section:
        driver.release(4096)
        return Section("never")

    assert "no reservation" in bench.attempt("Step", step).failure
