"""The messages of the service `weights`, in MESSAGE frames (docs/protocol.md, "Netloader").

A client asks once (`Ask`), gets `Offer` or `Refused`, and then reads as often as it likes (`Read`): each is answered by
the blocks in order, one DATA frame each with the block's number as its position and the `Read`'s tag, or by `Refused`
in the place of the first block that does not come. Before it reads, it may ask for another way for the bytes: `Borrow`
(memory that both can map; then `Placed` may stand for many blocks), or `Meet` (torch.distributed; the two then speak as
`transfer.transports.collective` does). `Share` is answered by `Shared`: pages that both will lie in, so that none of
their bytes has to come.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import msgspec

from transfer.errors import PeerViolation
from transfer.netloader.identity import Identity
from transfer.netloader.manifest import MAX_MANIFEST, Manifest

SERVICE = b"weights"
MAX_READ = 64
"""Blocks in one `Read`."""

Number = Annotated[int, msgspec.Meta(ge=0, le=1 << 40)]
Place = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]


class Code(StrEnum):
    """Why a source gives nothing."""

    MISMATCH = "mismatch"  # another identity: `details` has a line for each field
    LATER = "later"  # it has not got this block itself yet
    SWITCHING = "switching"  # its memory is coming or going just now
    GONE = "gone"  # it stops serving
    BAD_REQUEST = "bad_request"
    NO_WAY = "no_way"  # bytes cannot go the way that was asked for: go on without


class Ask(msgspec.Struct, frozen=True, tag=True):
    """First on every connection."""

    identity: Identity


class Read(msgspec.Struct, frozen=True, tag=True):
    """`count` blocks from number `first` on."""

    first: Number
    count: Annotated[int, msgspec.Meta(ge=1, le=MAX_READ)]


class Borrow(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """Lend me what you serve: I can map what the daemon of `machine` owns. `together`: and I understand `Placed`."""

    machine: Annotated[str, msgspec.Meta(min_length=1, max_length=512)]
    together: bool = False


class Meet(msgspec.Struct, frozen=True, tag=True):
    """Join me in a process group of `backend`; answered by joining."""

    backend: Annotated[str, msgspec.Meta(pattern="^(gloo|nccl|hccl)$")]


class Share(msgspec.Struct, frozen=True, tag=True):
    """Let me lie in the pages of your weights: I start on `device` of the node whose daemon is that of `machine`."""

    machine: Annotated[str, msgspec.Meta(min_length=1, max_length=512)]
    device: Annotated[str, msgspec.Meta(min_length=1, max_length=256)]


class Shared(msgspec.Struct, frozen=True, tag=True):
    """The node daemon gives them to whoever opens this digest there."""

    digest: Annotated[str, msgspec.Meta(min_length=1, max_length=256)]


class Lent(msgspec.Struct, frozen=True, tag=True):
    """What the client may map, from the node daemon: a view (not 0) of the source's pages, or else the host master of
    this digest. From now on blocks that lie there are announced by their place in it."""

    view: Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)] = 0
    master: Annotated[str, msgspec.Meta(max_length=256)] = ""


class Placed(msgspec.Struct, frozen=True, tag=True):
    """In the place of as many frames: where neighbouring blocks lie in what was lent, from the block on that is this
    frame's position. Their sums are the manifest's."""

    places: Annotated[tuple[Place, ...], msgspec.Meta(min_length=1, max_length=MAX_READ)]


class Offer(msgspec.Struct, frozen=True, tag=True):
    """What the source holds, or will hold."""

    manifest: Manifest


class Refused(msgspec.Struct, frozen=True, tag=True):
    """See `Code`."""

    code: Code
    details: Annotated[tuple[Annotated[str, msgspec.Meta(max_length=4096)], ...], msgspec.Meta(max_length=64)] = ()


MAX_MESSAGE = MAX_MANIFEST

encode = msgspec.msgpack.Encoder().encode
Request = Ask | Read | Borrow | Meet | Share
Answer = Offer | Refused | Lent | Placed | Shared
_request: msgspec.msgpack.Decoder[Request] = msgspec.msgpack.Decoder(Request)
_answer: msgspec.msgpack.Decoder[Answer] = msgspec.msgpack.Decoder(Answer)


def decode_request(data: bytes) -> Request:
    """Raises PeerViolation."""
    try:
        return _request.decode(data)
    except msgspec.MsgspecError as error:
        raise PeerViolation(f"a request that does not decode: {error}") from error


def decode_answer(data: bytes) -> Answer:
    """Raises PeerViolation."""
    try:
        return _answer.decode(data)
    except msgspec.MsgspecError as error:
        raise PeerViolation(f"an answer that does not decode: {error}") from error
