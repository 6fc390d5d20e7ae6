"""etcd's JSON gateway: requests to bytes, bytes to typed replies (https://etcd.io/docs/v3.5/dev-guide/api_grpc_gateway/).

int64 are strings there, bytes are base64, and what has its default value is absent.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import msgspec

from coordinator.store.base import Change, Changes, Compare, CreateRevision, KeyValue, ModRevision, Op, Put, ValueIs

Json = dict[str, object]


class Header(msgspec.Struct, frozen=True):
    revision: int = 0


class Kv(msgspec.Struct, frozen=True):
    key: bytes = b""
    value: bytes = b""
    create_revision: int = 0
    mod_revision: int = 0
    lease: int = 0


class Reply(msgspec.Struct, frozen=True):
    """Of any call whose answer says nothing but that it was done."""

    header: Header = Header()


class RangeReply(msgspec.Struct, frozen=True):
    header: Header = Header()
    kvs: tuple[Kv, ...] = ()


class TxnReply(msgspec.Struct, frozen=True):
    header: Header = Header()
    succeeded: bool = False


class AuthReply(msgspec.Struct, frozen=True):
    token: str


class VersionReply(msgspec.Struct, frozen=True):
    etcdserver: str


class GatewayError(msgspec.Struct, frozen=True):
    """An error's body, or within a stream its `error`: `code` there is `grpc_code`."""

    error: str = ""
    message: str = ""
    code: int = 2
    grpc_code: int | None = None


class KeepAlive(msgspec.Struct, frozen=True):
    ttl: int = msgspec.field(default=0, name="TTL")


class KeepAliveReply(msgspec.Struct, frozen=True):
    result: KeepAlive | None = None
    error: GatewayError | None = None


class Event(msgspec.Struct, frozen=True):
    kv: Kv
    type: str = "PUT"


class WatchResult(msgspec.Struct, frozen=True):
    header: Header = Header()
    created: bool = False
    canceled: bool = False
    cancel_reason: str = ""
    compact_revision: int = 0
    events: tuple[Event, ...] = ()


class WatchFrame(msgspec.Struct, frozen=True):
    result: WatchResult | None = None
    error: GatewayError | None = None


def encode_key(key: str) -> bytes:
    return key.encode("utf-8", "surrogateescape")


def decode_key(key: bytes) -> str:
    """A key that is no UTF-8 is somebody else's; it survives the round trip."""
    return key.decode("utf-8", "surrogateescape")


def range_body(prefix: str) -> Json:
    key = encode_key(prefix)
    return {"key": key or b"\0", "range_end": prefix_end(key)}


def prefix_end(prefix: bytes) -> bytes:
    """The first key after all that start with `prefix`; `\\0` means: no end."""
    head = prefix.rstrip(b"\xff")
    return head[:-1] + bytes([head[-1] + 1]) if head else b"\0"


def txn_body(compares: Sequence[Compare], then: Sequence[Op]) -> Json:
    return {"compare": [_compare(compare) for compare in compares], "success": [_op(op) for op in then]}


def watch_body(prefix: str, start_revision: int) -> Json:
    return {"create_request": {**range_body(prefix), "start_revision": str(start_revision)}}


def key_value(kv: Kv) -> KeyValue:
    return KeyValue(decode_key(kv.key), kv.value, kv.create_revision, kv.mod_revision, kv.lease)


def batches(events: Sequence[Event], following: int) -> list[Changes]:
    """A frame's events, a revision whole, without those before `following`. A frame never ends within a revision:
    we do not ask etcd for fragments."""
    grouped = groupby(events, key=lambda event: event.kv.mod_revision)
    return [Changes(tuple(map(_change, group)), revision) for revision, group in grouped if revision >= following]


def _change(event: Event) -> Change:
    kv = None if event.type == "DELETE" else key_value(event.kv)
    return Change(decode_key(event.kv.key), kv, event.kv.mod_revision)


def _compare(compare: Compare) -> Json:
    wanted: Json = {"key": encode_key(compare.key), "result": "EQUAL"}
    match compare:
        case CreateRevision():
            return wanted | {"target": "CREATE", "create_revision": str(compare.revision)}
        case ModRevision():
            return wanted | {"target": "MOD", "mod_revision": str(compare.revision)}
        case ValueIs():
            return wanted | {"target": "VALUE", "value": compare.value}


def _op(op: Op) -> Json:
    if isinstance(op, Put):
        return {"request_put": {"key": encode_key(op.key), "value": op.value, "lease": str(op.lease)}}
    return {"request_delete_range": range_body(op.key) if op.prefix else {"key": encode_key(op.key)}}
