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
Content = Annotated[str, msgspec.Meta(max_length=256)]
DeviceName = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
Revision = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
Timeout = Annotated[float, msgspec.Meta(gt=0, le=3600)]
Size = Annotated[int, msgspec.Meta(ge=0, le=1 << 50)]
ChunkId = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
ShareId = Annotated[int, msgspec.Meta(ge=0, le=(1 << 31) - 1)]
ViewId = Annotated[int, msgspec.Meta(ge=1, le=(1 << 63) - 1)]


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


class Answer(msgspec.Struct, frozen=True):
    """An engine's residency after an operation (the JSON of `coordinator.core.model.Residency`), and the mod_revision
    of its key as the engine knows it. Who has left everywhere has it put in the daemon's own transaction."""

    residency: Annotated[bytes, msgspec.Meta(max_length=1 << 16)]
    above: Revision


class Leave(msgspec.Struct, frozen=True, tag=True):
    """PROTOCOL rule 8: the operation is over; the daemon persists and publishes `closed` and `owners`, and `answer`
    beside them if it can: the caller looks whether it came, and puts it itself if not. Idempotent."""

    device: DeviceName
    epoch: Name
    revision: Revision
    answer: Answer | None = None


class AwaitOpen(msgspec.Struct, frozen=True, tag=True):
    """A worker waits until its own engine's operation is open on `device` (start-up admission)."""

    device: DeviceName
    timeout_s: Timeout


class Map(msgspec.Struct, frozen=True, tag=True):
    """PROTOCOL rule 7: `count` (1..MAX_FDS) populated chunks of `kind`, one descriptor each beside the reply, or one
    64-bit handle each in it, where the device's driver shares by handle. Then `share_id` says which process may import
    them (`Driver.share_id`).

    `ticket` is drawn at random for each call; the same one again says that its answer was lost, and takes back what
    that answer held. Waits at most `timeout_s` for chunks that are still being populated or wiped.

    `overwritten` (weights only): the caller overwrites each of them whole before anything reads it, as a restore does.
    Else they are zero. `content` (with `overwritten`): the name that an `Unmap` gave to what the caller will write; the
    chunks are those from `first` on of it, and some may hold it still (`Mapped.still`). `kv` (with weights only): so
    many chunks of KV behind them, zero; MAX_FDS at most together."""

    device: DeviceName
    kind: Kind
    count: Annotated[int, msgspec.Meta(ge=1, le=MAX_FDS)]
    ticket: Annotated[int, msgspec.Meta(ge=1, le=(1 << 63) - 1)]
    timeout_s: Timeout
    share_id: ShareId = 0
    overwritten: bool = False
    kv: Annotated[int, msgspec.Meta(ge=0, lt=MAX_FDS)] = 0
    content: Content = ""
    first: Annotated[int, msgspec.Meta(ge=0, le=65536)] = 0


class Unmap(msgspec.Struct, frozen=True, tag=True):
    """These chunks are unmapped and their descriptors closed in the caller: the daemon may give them to others.
    Idempotent: chunks that nobody holds any more are passed over. `content` names what the first `holding` of them
    hold, for whoever maps it again before somebody else needs the chunks; only who knows the name gets to see it."""

    device: DeviceName
    chunks: Annotated[tuple[ChunkId, ...], msgspec.Meta(min_length=1, max_length=65536)]
    content: Content = ""
    holding: Annotated[int, msgspec.Meta(ge=0, le=65536)] = 0


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


class ReleaseMaster(msgspec.Struct, frozen=True, tag=True):
    """The caller has the master of `digest` mapped no more and its descriptors closed. Idempotent."""

    digest: Name


class ReportHost(msgspec.Struct, frozen=True, tag=True):
    """Host bytes this process holds for saved KV from now on (the node's second budget); refused `no_space` where
    they do not fit, and then the last report stands."""

    saved_kv: Size


class HandBackChunks(msgspec.Struct, frozen=True, tag=True):
    """To a restarted daemon: descriptors of chunks that the caller holds, in this order, beside the request. All are
    checked against the journal (owner, size, file) before one is taken; what is not missed is passed over."""

    device: DeviceName
    chunks: Annotated[tuple[ChunkId, ...], msgspec.Meta(min_length=1, max_length=MAX_FDS)]


class HandBackMaster(msgspec.Struct, frozen=True, tag=True):
    """To a restarted daemon: a descriptor of the sealed master of `digest`, which the caller has mapped."""

    digest: Name


class Listen(msgspec.Struct, frozen=True, tag=True):
    """What the daemon asks of the calling process, beyond what `News.last` of an earlier answer covers. Waits at most
    `timeout_s` for the first; then nothing is news. On a connection of its own: it blocks it."""

    after: Revision
    timeout_s: Timeout


class OfferView(msgspec.Struct, frozen=True, tag=True):
    """These chunks of the caller may be mapped read-only by processes of the engine `to` (empty: of any engine of this
    node), until they are revoked or unmapped. Charged to the caller alone."""

    device: DeviceName
    chunks: Annotated[tuple[ChunkId, ...], msgspec.Meta(min_length=1, max_length=65536)]
    to: Annotated[str, msgspec.Meta(max_length=256)] = ""


class OpenView(msgspec.Struct, frozen=True, tag=True):
    """From now on the caller may have these chunks mapped: answered with `Viewed`, from the chunk number `first` of the
    view on, at most MAX_FDS with a read-only descriptor each."""

    view: ViewId
    first: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 0


class CloseView(msgspec.Struct, frozen=True, tag=True):
    """The caller has unmapped the view and closed its descriptors. Always allowed, and idempotent."""

    view: ViewId


class RevokeView(msgspec.Struct, frozen=True, tag=True):
    """By the owner: nobody opens the view any more, and who has it open is asked to let go. Who has not by `timeout_s`
    is killed. Answered when nobody has it mapped; refused `timeout` where a killed process does not end. Idempotent."""

    view: ViewId
    timeout_s: Timeout


class OfferShare(msgspec.Struct, frozen=True, tag=True):
    """These weight chunks of the caller, in this order, hold the content of `digest`, and the caller writes to them no
    more until it unmaps them all: other engines may map them read-only, uncharged. When the caller unmaps them or dies,
    one of those owns them. Where that content is offered on the device already, nothing changes. At any time, in an
    operation or not: nothing is mapped or unmapped by it."""

    device: DeviceName
    digest: Name
    chunks: Annotated[tuple[ChunkId, ...], msgspec.Meta(min_length=1, max_length=65536)]


class OpenShare(msgspec.Struct, frozen=True, tag=True):
    """From now on the caller may have the content of `digest` mapped read-only: answered with `Viewed`, from its chunk
    number `first` on, at most MAX_FDS with a read-only descriptor each; `not_found` where nobody offers it. In an
    operation. The caller may come to own the pages."""

    device: DeviceName
    digest: Name
    first: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 0


class CloseShare(msgspec.Struct, frozen=True, tag=True):
    """The caller has unmapped that content and closed its descriptors, whether it owns the pages by now or not. In an
    operation; idempotent."""

    device: DeviceName
    digest: Name


class ShareWanted(msgspec.Struct, frozen=True, tag=True):
    """Whether another engine of this device says in etcd that its weights are of `digest`: `done`, else `not_found`."""

    device: DeviceName
    digest: Name


class Stats(msgspec.Struct, frozen=True, tag=True):
    """What the daemon knows, as one JSON text (for people, doctor and tests). Needs no hello."""


MasterRequest = CreateMaster | SealMaster | OpenMaster | ReleaseMaster | ReportHost | HandBackMaster
ViewRequest = OfferView | OpenView | CloseView | RevokeView
ShareRequest = OfferShare | OpenShare | CloseShare | ShareWanted
Request = (
    Hello
    | Enter
    | Leave
    | AwaitOpen
    | Map
    | Unmap
    | HandBackChunks
    | MasterRequest
    | ViewRequest
    | ShareRequest
    | Listen
    | Stats
)


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
    """Answer to `Hello`: chunk size by device in bytes, the daemon's version, and which of its starts this is: where
    it has changed, hand back what you hold."""

    version: str
    chunk: dict[str, int]
    generation: int = 0


class Opened(msgspec.Struct, frozen=True, tag=True):
    """Answer to `AwaitOpen` and `Enter`: what is open for the caller's engine; `bytes` is the grant."""

    epoch: str
    revision: int
    order: str
    bytes: int


class Mapped(msgspec.Struct, frozen=True, tag=True):
    """Answer to `Map`: ids of the chunks, in the order of the descriptors beside the frame or, where none are there, of
    `handles`; `chunk` bytes each. Those at the places `still` hold the content that was asked for."""

    chunks: tuple[int, ...]
    chunk: int
    handles: tuple[int, ...] = ()
    still: tuple[int, ...] = ()


class Master(msgspec.Struct, frozen=True, tag=True):
    size: int


class News(msgspec.Struct, frozen=True, tag=True):
    """Answer to `Listen`. `let_go`: views that are revoked. `spare`: masters whose bytes are needed, and which the
    caller could do without while its own pages are there: a wish, not an order."""

    last: int
    let_go: tuple[int, ...] = ()
    spare: tuple[str, ...] = ()


class Offered(msgspec.Struct, frozen=True, tag=True):
    """Answer to `OfferView`. The id is drawn at random and is good until the view ends."""

    view: int


class Viewed(msgspec.Struct, frozen=True, tag=True):
    """Answer to `OpenView` and `OpenShare`: ids of these chunks, in the view's order and that of the descriptors beside
    the frame; `chunk` bytes each; the view has `total`."""

    device: str
    chunks: tuple[int, ...]
    chunk: int
    total: int


class Facts(msgspec.Struct, frozen=True, tag=True):
    json: str


class Refused(msgspec.Struct, frozen=True, tag=True):
    code: Code
    message: str


Reply = Done | Welcome | Opened | Mapped | Master | News | Offered | Viewed | Facts | Refused

encode = msgspec.msgpack.Encoder().encode
decode_request = msgspec.msgpack.Decoder(Request).decode
decode_reply = msgspec.msgpack.Decoder(Reply).decode
