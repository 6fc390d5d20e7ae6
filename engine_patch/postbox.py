"""How a worker tells the agent what no call waits for: that the copy behind a restore has ended.

vLLM's own channel to a worker is busy with the first forward pass by then, which may take seconds; the device must not
wait for it. A Unix socket in the abstract namespace (unix(7)) leads from the workers to the agent; only processes of
the same user are heard (SO_PEERCRED, socket(7)).
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
import struct
from collections.abc import Collection

import msgspec

from engine_patch import report
from engine_patch.report import Report

log = logging.getLogger("vllm.vnpu.agent")

LIMIT_S = 5.0
MOST = 1 << 16
"""Bytes of one report."""
_CREDENTIALS = struct.Struct("3i")


class Postbox:
    """The agent's end; lives on the agent's loop."""

    def __init__(self) -> None:
        self.address = f"vnpu-{secrets.token_hex(16)}"
        self._reports: dict[tuple[int, int], Report] = {}
        self._news = asyncio.Condition()

    async def open(self) -> asyncio.Server:
        """Listening from now on; the caller closes it."""
        return await asyncio.start_unix_server(self._hear, path=_path(self.address), limit=MOST)

    async def collect(self, ranks: Collection[int], turn: int) -> tuple[Report, ...]:
        """The reports of these ranks about restore number `turn`, once all are there. The caller sets a deadline."""
        wanted = {(rank, turn) for rank in ranks}
        async with self._news:
            await self._news.wait_for(lambda: wanted <= self._reports.keys() or self._failure(turn) is not None)
            failure = self._failure(turn)
            found = tuple(self._reports[key] for key in sorted(wanted) if key in self._reports)
            self._reports.clear()
        return (failure,) if failure else found

    def _failure(self, turn: int) -> Report | None:
        """One rank's error is everybody's: the others may wait for it in vain, in the same forward pass."""
        return next((one for one in self._reports.values() if one.turn == turn and one.error), None)

    async def _hear(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            peer = writer.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
            if _CREDENTIALS.unpack(peer)[1] != os.getuid():
                log.warning("a report from process %d of another user is not heard", _CREDENTIALS.unpack(peer)[0])
                return
            async with asyncio.timeout(LIMIT_S):
                (one,) = report.decode([(await reader.readuntil(b"\n")).decode()])
            async with self._news:
                self._reports[one.rank, one.turn] = one
                self._news.notify_all()
        except (OSError, EOFError, TimeoutError, asyncio.LimitOverrunError, msgspec.MsgspecError, ValueError) as error:
            log.warning("a report that cannot be read: %s", error)
        finally:
            writer.close()


def post(address: str, one: Report) -> None:
    """Tell the agent whose postbox has this address. Raises OSError where nobody listens any more."""
    with socket.socket(socket.AF_UNIX) as line:
        line.settimeout(LIMIT_S)
        line.connect(_path(address))
        line.sendall(report.encode(one) + b"\n")


def _path(address: str) -> str:
    return f"\0{address}"
