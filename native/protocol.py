"""The daemon's wire protocol: msgpack frames on a Unix stream socket, file descriptors beside them (SCM_RIGHTS).

A frame is a 4-byte big-endian length and that many bytes of msgpack, at most `MAX_FRAME`. A connection sends one
request at a time and gets one reply for each. The daemon knows the peer by SO_PEERCRED and SO_PEERPIDFD; the claimed
engine and nonce are checked against the engine's spec key in etcd.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import msgspec

MAX_FRAME = 1 << 20
MAX_FDS = 128
"""Descriptors beside one frame at most (the kernel's SCM_MAX_FD is 253); more come in further calls."""

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
DeviceName = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
Revision = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
Timeout = Annotated[float, msgspec.Meta(gt=0, le=3600)]
Size = Annotated[int, msgspec.Meta(ge=0, le=1 << 50)]
ChunkId = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]


class Kind(StrEnum):
    """What a chunk holds; kinds never share a chunk."""

    WEIGHTS = "weights"
    KV = "kv"


class Hello(msgspec.Struct, frozen=True, tag=True):
    """First on every connection. `role` is `agent` (enters and leaves) or `worker` (maps, restores)."""

    engine: Name
    nonce: Name
    role: Annotated[str, msgspec.Meta(pattern="^(agent|worker)$")]
    rank: Annotated[int, msgspec.Meta(ge=0, le=1023)] = 0


class Enter(msgspec.Struct, frozen=True, tag=True):
    """PROTOCOL rule 6. Waits at most `timeout_s` for the daemon's view, for another operation, for agreement."""

    device: DeviceName
    epoch: Name
    revision: Revision
    timeout_s: Timeout


class Leave(msgspec.Struct, frozen=True, tag=True):
    """PROTOCOL rule 8: the operation is over; the daemon persists and publishes `closed` and `owners`. Idempotent."""

    device: DeviceName
    epoch: Name
    revision: Revision


class AwaitOpen(msgspec.Struct, frozen=True, tag=True):
    """A worker waits until its own engine's operation is open on `device` (start-up admission)."""

    device: DeviceName
    timeout_s: Timeout


class Map(msgspec.Struct, frozen=True, tag=True):
    """PROTOCOL rule 7: `count` (1..MAX_FDS) populated chunks of `kind`, one descriptor each beside the reply.

    `ticket` is drawn at random for each call; the same one again says that its answer was lost, and takes back what
    that answer held. Waits at most `timeout_s` for chunks that are still being populated."""

    device: DeviceName
    kind: Kind
    count: Annotated[int, msgspec.Meta(ge=1, le=MAX_FDS)]
    ticket: Annotated[int, msgspec.Meta(ge=1, le=(1 << 63) - 1)]
    timeout_s: Timeout


class Unmap(msgspec.Struct, frozen=True, tag=True):
    """These chunks are unmapped and their descriptors closed in the caller: the daemon may give them to others.
    Idempotent: chunks that nobody holds any more are passed over."""

    device: DeviceName
    chunks: Annotated[tuple[ChunkId, ...], msgspec.Meta(min_length=1, max_length=65536)]


class CreateMaster(msgspec.Struct, frozen=True, tag=True):
    """A host master of `size` bytes (answered with `Master`: rounded up to the driver's granularity), populated, with
    one writable descriptor beside the reply. Until it is sealed it lives as long as this connection."""

    size: Size


class SealMaster(msgspec.Struct, frozen=True, tag=True):
    """The master created last on this connection holds the content of `digest` and does not change any more: the
    caller closes its writable descriptor. Where that digest has a master already, the new one is dropped."""

    digest: Name


class OpenMaster(msgspec.Struct, frozen=True, tag=True):
    """The sealed master of `digest`, read-only descriptor beside the reply; refused `not_found` where there is none."""

    digest: Name


class ReportHost(msgspec.Struct, frozen=True, tag=True):
    """Host bytes this process holds for saved KV from now on (the node's second budget); refused `no_space` where
    they do not fit, and then the last report stands."""

    saved_kv: Size


class Stats(msgspec.Struct, frozen=True, tag=True):
    """What the daemon knows, as one JSON text (for people, doctor and tests). Needs no hello."""


Request = Hello | Enter | Leave | AwaitOpen | Map | Unmap | CreateMaster | SealMaster | OpenMaster | ReportHost | Stats


class Code(StrEnum):
    """Why a call was refused."""

    STALE = "stale"  # the fence is old, gone, closed or another's: touch nothing
    TIMEOUT = "timeout"  # waited as long as asked
    NOT_OPEN = "not_open"  # no operation of the caller is open on that device
    NO_SPACE = "no_space"  # capacity or the grant's bytes would be exceeded
    NOT_FOUND = "not_found"
    BAD_REQUEST = "bad_request"
    FORBIDDEN = "forbidden"  # peer, nonce or role does not fit
    FAILED = "failed"  # the daemon could not do it (disk, driver): nothing has changed, ask again later


class Done(msgspec.Struct, frozen=True, tag=True):
    pass


class Welcome(msgspec.Struct, frozen=True, tag=True):
    """Answer to `Hello`: chunk size by device in bytes, the daemon's version."""

    version: str
    chunk: dict[str, int]


class Opened(msgspec.Struct, frozen=True, tag=True):
    """Answer to `AwaitOpen` and `Enter`: what is open for the caller's engine; `bytes` is the grant."""

    epoch: str
    revision: int
    order: str
    bytes: int


class Mapped(msgspec.Struct, frozen=True, tag=True):
    """Answer to `Map`: ids of the chunks, in the order of the descriptors beside the frame; `chunk` bytes each."""

    chunks: tuple[int, ...]
    chunk: int


class Master(msgspec.Struct, frozen=True, tag=True):
    size: int


class Facts(msgspec.Struct, frozen=True, tag=True):
    json: str


class Refused(msgspec.Struct, frozen=True, tag=True):
    code: Code
    message: str


Reply = Done | Welcome | Opened | Mapped | Master | Facts | Refused

encode = msgspec.msgpack.Encoder().encode
decode_request = msgspec.msgpack.Decoder(Request).decode
decode_reply = msgspec.msgpack.Decoder(Reply).decode
