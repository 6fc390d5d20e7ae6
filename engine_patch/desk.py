"""Between a worker and its engine's agent, beside vLLM's own channel: the worker asks who has its weights, says what it
has itself, and that the copy behind a restore has ended.

Workers are up long before the server that the agent's calls go through, and hold neither lease nor watch; the agent has
both. And while a restore's copy ends, vLLM's channel is busy with the first forward pass, which may take seconds: the
device must not wait for it. A Unix socket in a folder that only this user may enter; each call is one connection, one
request, one answer: a 4-byte big-endian length and MessagePack, at most 1 MiB.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import socket
import struct
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

from coordinator.core.model import Seed
from engine_patch.report import Report
from engine_patch.seeds import Found
from transfer.errors import TransferError

log = logging.getLogger("vllm.vnpu.agent")

MAX_FRAME = 1 << 20
CALL_S = 5.0
_LENGTH = struct.Struct(">I")


class Publish(msgspec.Struct, frozen=True, tag=True):
    """What this worker has of these weights; put on the engine's lease."""

    fingerprint: str
    seed: Seed


class Find(msgspec.Struct, frozen=True, tag=True):
    """Who has weights of this fingerprint, of this family, of this checkpoint, or of this configuration (`kin`)."""

    fingerprint: str = ""
    family: str = ""
    checkpoint: str = ""
    kin: str = ""


class Settled(msgspec.Struct, frozen=True, tag=True):
    """A restore that went on behind its answer is over, well or not."""

    report: Report


Request = Publish | Find | Settled


class Answer(msgspec.Struct, frozen=True):
    """What a `Find` found; empty for the others."""

    found: tuple[Found, ...] = ()


_encode = msgspec.msgpack.Encoder().encode
_request: msgspec.msgpack.Decoder[Request] = msgspec.msgpack.Decoder(Request)
_answer = msgspec.msgpack.Decoder(Answer)

Handle = Callable[[Request], Answer]


@asynccontextmanager
async def open_desk(handle: Handle) -> AsyncIterator[str]:
    """Listen; yields the socket's path. `handle` is called in this loop and must not block."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(CALL_S):
                (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
                if length > MAX_FRAME:
                    raise ValueError(f"a request of {length} bytes")
                body = _encode(handle(_request.decode(await reader.readexactly(length))))
                writer.write(_LENGTH.pack(len(body)) + body)
                await writer.drain()
        except (OSError, EOFError, ValueError, TimeoutError, msgspec.MsgspecError) as error:
            log.warning("a worker's call: %s", error or type(error).__name__)
        finally:
            writer.close()

    folder = await asyncio.to_thread(tempfile.mkdtemp, prefix="vnpu-desk-")  # 0700
    try:
        path = str(Path(folder) / "desk")
        async with await asyncio.start_unix_server(serve, path):
            yield path
    finally:
        await asyncio.to_thread(shutil.rmtree, folder, True)


class Desk:
    """The worker's side. Thread-safe: each call has its own connection."""

    def __init__(self, path: str) -> None:
        self._path = path

    def find(
        self, *, fingerprint: str = "", family: str = "", checkpoint: str = "", kin: str = ""
    ) -> tuple[Found, ...]:
        """Raises TransferError where the agent does not answer."""
        return self._call(Find(fingerprint, family, checkpoint, kin)).found

    def publish(self, fingerprint: str, seed: Seed) -> None:
        """Raises TransferError where the agent does not answer."""
        self._call(Publish(fingerprint, seed))

    def settled(self, report: Report) -> None:
        """Raises TransferError where the agent does not answer."""
        self._call(Settled(report))

    def _call(self, request: Request) -> Answer:
        body = _encode(request)
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
                sock.settimeout(CALL_S)
                sock.connect(self._path)
                sock.sendall(_LENGTH.pack(len(body)) + body)
                with sock.makefile("rb") as stream:
                    (length,) = _LENGTH.unpack(_exactly(stream.read(_LENGTH.size), _LENGTH.size))
                    if length > MAX_FRAME:
                        raise ValueError(f"an answer of {length} bytes")
                    return _answer.decode(_exactly(stream.read(length), length))
        except (OSError, ValueError, msgspec.MsgspecError) as error:
            raise TransferError(f"the agent does not answer: {error}", remedy="see the engine's log") from error


def _exactly(data: bytes, size: int) -> bytes:
    if len(data) != size:
        raise ValueError("it hung up")
    return data
