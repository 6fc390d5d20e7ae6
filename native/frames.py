"""Frames of the daemon's protocol on a blocking socket: the client's side of the wire."""

from __future__ import annotations

import array
import os
import socket
import struct
import time
from collections.abc import Iterable, Sequence

import msgspec

from native import protocol
from native.protocol import MAX_FDS, MAX_FRAME

_LENGTH = struct.Struct(">I")
_INTS = array.array("i")


class FrameError(Exception):
    """What was to be sent, or what came, does not keep to the protocol."""


def exchange(
    sock: socket.socket, request: protocol.Request, deadline: float, beside: Sequence[int] = ()
) -> tuple[protocol.Reply, list[int]]:
    """Send a request, with the descriptors `beside` it, and receive its reply with the descriptors beside that (the
    caller's to close).

    Raises:
        FrameError: one of the two does not keep to the protocol.
        TimeoutError: the deadline (monotonic seconds) passed.
        OSError: the connection broke.
    """
    body = protocol.encode(request)
    if len(body) > MAX_FRAME:
        raise FrameError(f"{type(request).__name__} takes {len(body)} B, at most {MAX_FRAME} B go in a frame")
    sock.settimeout(left(deadline))
    frame = _LENGTH.pack(len(body)) + body
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", beside))] if beside else []
    # Not `sendall` alone: an empty piece after the whole frame would be waited for in vain.
    if rest := frame[sock.sendmsg([frame], ancillary) :]:
        sock.sendall(rest)
    descriptors: list[int] = []
    try:
        return _reply(sock, descriptors, deadline), descriptors
    except BaseException:
        close_all(descriptors)
        raise


def _reply(sock: socket.socket, descriptors: list[int], deadline: float) -> protocol.Reply:
    sock.settimeout(left(deadline))
    head, ancillary, flags, _ = sock.recvmsg(
        _LENGTH.size, socket.CMSG_SPACE(MAX_FDS * _INTS.itemsize), socket.MSG_CMSG_CLOEXEC
    )
    descriptors += passed(ancillary)
    if flags & socket.MSG_CTRUNC:
        raise FrameError("descriptors were cut off: raise this process's limit of open files (ulimit -n)")
    head += _exactly(sock, _LENGTH.size - len(head), deadline)
    (length,) = _LENGTH.unpack(head)
    if length > MAX_FRAME:
        raise FrameError(f"a reply of {length} B, at most {MAX_FRAME} B go in a frame")
    try:
        reply: protocol.Reply = protocol.decode_reply(_exactly(sock, length, deadline))
    except msgspec.MsgspecError as error:
        raise FrameError(f"a reply that does not decode: {error}") from error
    return reply


def _exactly(sock: socket.socket, size: int, deadline: float) -> bytes:
    parts = bytearray()
    while len(parts) < size:
        sock.settimeout(left(deadline))
        part = sock.recv(size - len(parts))
        if not part:
            raise ConnectionResetError("the daemon closed the connection")
        parts += part
    return bytes(parts)


def passed(ancillary: Iterable[tuple[int, int, bytes]]) -> list[int]:
    """The descriptors in what recvmsg(2) gave beside a message; the caller's to close."""
    found: list[int] = []
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            found += array.array("i", data[: len(data) - len(data) % _INTS.itemsize])
    return found


def left(deadline: float) -> float:
    """Seconds until `deadline`. Raises TimeoutError where it has passed."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def close_all(descriptors: Iterable[int]) -> None:
    """Close descriptors that nobody wants."""
    for descriptor in descriptors:
        os.close(descriptor)
