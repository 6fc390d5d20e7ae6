"""The workers' way to the agent past vLLM's own channel."""

from __future__ import annotations

import asyncio
import socket

import pytest

from engine_patch.postbox import Postbox, post
from engine_patch.report import Report

PATIENCE_S = 30.0


def about(rank: int, turn: int, error: str = "") -> Report:
    return Report(rank=rank, pid=rank + 1, turn=turn, restored=rank, error=error)


async def put(box: Postbox, *reports: Report) -> None:
    for one in reports:
        await asyncio.to_thread(post, box.address, one)


async def test_all_ranks_reports_of_this_turn_are_waited_for():
    box = Postbox()
    async with asyncio.timeout(PATIENCE_S), await box.open():
        waiting = asyncio.create_task(box.collect([0, 1], 7))
        await put(box, about(1, 6), about(1, 7))
        assert not waiting.done()
        await put(box, about(0, 7))
        assert [(one.rank, one.turn) for one in await waiting] == [(0, 7), (1, 7)]


async def test_one_ranks_error_does_not_wait_for_the_others():
    box = Postbox()
    async with asyncio.timeout(PATIENCE_S), await box.open():
        await put(box, about(1, 3, "came back wrong"))
        (one,) = await box.collect([0, 1], 3)
        assert one.error == "came back wrong"


async def test_what_cannot_be_read_is_passed_over():
    box = Postbox()
    async with asyncio.timeout(PATIENCE_S), await box.open():
        for rubbish in (b"", b"{}\n", b"x" * 200_000, b"\xff\n"):
            await asyncio.to_thread(_send, box, rubbish)
        await put(box, about(0, 1))
        assert len(await box.collect([0], 1)) == 1


async def test_nobody_listens():
    with pytest.raises(ConnectionRefusedError):
        await put(Postbox(), about(0, 1))


def _send(box: Postbox, data: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as line:
        line.settimeout(PATIENCE_S)
        line.connect(f"\0{box.address}")
        try:
            line.sendall(data)
            line.shutdown(socket.SHUT_WR)
            line.recv(1)
        except OSError:
            return
