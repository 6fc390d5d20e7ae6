"""Idle processors are asked to stay awake for a moment, and never for longer than somebody has asked."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from native.daemon.latency import WakeUps

ANY = 2_000_000_000


@pytest.fixture
def device(tmp_path: Path) -> Path:
    """A file that keeps what was written to it."""
    file = tmp_path / "cpu_dma_latency"
    file.touch()
    return file


@pytest.fixture
async def wake_ups(device: Path) -> AsyncIterator[WakeUps]:
    asked = WakeUps(device)
    yield asked
    asked.close()


def said(file: Path) -> list[int]:
    """Microseconds, in order."""
    return [one for (one,) in struct.iter_unpack("=i", file.read_bytes())]


async def test_it_is_asked_once_and_taken_back_once(wake_ups: WakeUps, device: Path) -> None:
    for _ in range(3):
        wake_ups.hasten(0.01)
    assert said(device) == [0]
    await asyncio.sleep(0.02)  # timers come in the order of their deadlines
    assert said(device) == [0, ANY]


async def test_whoever_asks_again_begins_anew(wake_ups: WakeUps, device: Path) -> None:
    for _ in range(2):
        wake_ups.hasten(0.001)
        await asyncio.sleep(0.01)
    assert said(device) == [0, ANY, 0, ANY]


async def test_a_later_question_is_not_cut_short_by_an_earlier_one(wake_ups: WakeUps, device: Path) -> None:
    wake_ups.hasten(0.0)
    wake_ups.hasten(60.0)
    await asyncio.sleep(0.01)
    assert said(device) == [0]


async def test_nothing_is_asked_after_the_end(wake_ups: WakeUps, device: Path) -> None:
    wake_ups.hasten(0.0)
    wake_ups.close()
    wake_ups.close()
    wake_ups.hasten(0.0)
    await asyncio.sleep(0.01)
    assert said(device) == [0]


async def test_a_machine_that_does_not_allow_it_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    asked = WakeUps(tmp_path / "none")
    asked.hasten(0.0)
    asked.hasten(1.0)
    asked.close()
    assert [record.message for record in caplog.records if "sleep during a switch" in record.message] != []
    assert len(caplog.records) == 1
