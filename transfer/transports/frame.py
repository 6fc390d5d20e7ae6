"""The frame: 24 bytes of header, then a body; all integers big-endian (docs/protocol.md, "Between engines").

     0      1       2       4        8            16      20       24
     | kind | flags | tag   | length | position   | sum   | check  | body ...

`sum` is CRC-32C of the body, `check` CRC-32C of the first 20 bytes: a flipped length is noticed before anyone waits for
bytes that never come. Pure.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import NamedTuple

from native import _native
from transfer.errors import Corrupt, PeerViolation

_FIELDS = struct.Struct(">BBHIQI")
_CHECK = struct.Struct(">I")
HEADER = _FIELDS.size + _CHECK.size
PLACE = struct.Struct(">Q")
"""What follows the header of an ASIDE frame."""
MAX_BODY = 16 << 20
"""No frame is longer, in bytes; a channel may bound its messages lower."""


class Kind(IntEnum):
    """MESSAGE: MessagePack, for the protocol above. DATA: raw bytes of what was asked for. ASIDE: such bytes come by
    another way that both sides have agreed on (`transfer.transports.carrier`); only their place there follows, 8 bytes,
    while `length` and `sum` are those of the bytes."""

    MESSAGE = 1
    DATA = 2
    ASIDE = 3


_KINDS = {int(kind): kind for kind in Kind}


class Header(NamedTuple):
    """`tag` and `position` belong to the protocol above: which request, and where in it. `length` in bytes."""

    kind: Kind
    tag: int
    length: int
    position: int
    sum: int


def encode(header: Header) -> bytes:
    """`HEADER` bytes. Raises ValueError where a field does not fit."""
    if not 0 <= header.length <= MAX_BODY:
        raise ValueError(f"a body of {header.length} bytes; at most {MAX_BODY} go in a frame")
    try:
        fields = _FIELDS.pack(header.kind, 0, header.tag, header.length, header.position, header.sum)
    except struct.error as error:
        raise ValueError(f"{header}: {error}") from error
    return fields + _CHECK.pack(checksum(fields))


def decode(data: bytes) -> Header:
    """The header in `HEADER` bytes.

    Raises:
        Corrupt: its checksum differs.
        PeerViolation: it is whole, but of no kind that is known or longer than is allowed.
    """
    fields, (check,) = data[: _FIELDS.size], _CHECK.unpack(data[_FIELDS.size :])
    if checksum(fields) != check:
        raise Corrupt("a frame's header is damaged", remedy="the stream cannot be followed any further: connect anew")
    number, flags, tag, length, position, body_sum = _FIELDS.unpack(fields)
    kind = _KINDS.get(number)
    if kind is None or flags or length > MAX_BODY:
        raise PeerViolation(
            f"a frame of kind {number}, flags {flags}, {length} bytes", remedy="run the same vNPU on both sides"
        )
    return Header(kind, tag, length, position, body_sum)


def checksum(data: bytes, init: int = 0) -> int:
    """CRC-32C of `data`; `init` continues an earlier one."""
    return _native.crc32c_bytes(data, init)
