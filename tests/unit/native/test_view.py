"""The daemon's view of etcd."""

from __future__ import annotations

import msgspec

from coordinator.core import model
from coordinator.core.model import Order
from coordinator.store import keys
from coordinator.store.base import Change, Changes, KeyValue, Listing
from coordinator.store.codec import decode, encode
from native.daemon.view import NodeView
from native.fences import Holder, Seat, Token, View

HOLDER = model.Holder("org/a", "n1")
EPOCH = encode(model.Epoch(id="e1"))
TOKEN = encode(model.Token(holder=HOLDER, lease=5, order=Order.RESTORE, bytes=10))
SEAT = encode(model.Seat(holder=HOLDER, lease=5, order=Order.RESTORE, bytes=10, limit_s=60))
SPEC = encode(
    model.Spec(
        holder=HOLDER, model="m", url="u", devices=("n/0",), pid=1, boot_id="b", footprint=model.Bytes(), digest="d"
    )
)


def kv(key: str, value: bytes, revision: int = 7, lease: int = 0) -> KeyValue:
    return KeyValue(key, value, revision, revision, lease)


def put(key: str, value: bytes, revision: int = 7) -> Change:
    return Change(key, kv(key, value, revision), revision)


def gone(key: str, revision: int) -> Change:
    return Change(key, None, revision)


def listed() -> NodeView:
    view = NodeView("n", ["0", "1"])
    view.take(
        Listing(
            (
                kv(keys.EPOCH, EPOCH, 1),
                kv(keys.seat("n/0"), SEAT),
                kv(keys.seat("other/0"), SEAT),
                kv(keys.spec("org/a"), SPEC, lease=5),
                kv(keys.token("n/0"), TOKEN, lease=5),
            ),
            9,
        )
    )
    return view


def test_a_listing() -> None:
    view = listed()
    assert view.listed
    assert view.of("0") == View(
        "e1", 9, Seat(Holder("org/a", "n1"), 7, "restore", 10, 60), Token(Holder("org/a", "n1"), 7)
    )
    assert view.of("1") == View("e1", 9)
    assert view.holder("org/a") == Holder("org/a", "n1")
    assert view.engines["org/a"].lease == 5
    assert view.digests == {"d"}


def test_who_else_has_a_content_on_a_device() -> None:
    view = listed()
    group = msgspec.structs.replace(
        decode(model.Spec, SPEC), holder=model.Holder("b", "n2"), devices=("n/0", "n/1"), digest="d,e"
    )
    view.take(Changes((put(keys.spec("b"), encode(group), 10),), 10))
    assert view.digests == {"d", "e"}
    assert view.others("org/a", "n/0", "d")
    assert view.others("b", "n/0", "d")
    assert not view.others("b", "n/1", "e")  # its own
    assert not view.others("org/a", "n/1", "d")  # on another device
    assert view.others("org/a", "n/1", "e")
    view.take(Changes((gone(keys.spec("org/a"), 11),), 11))
    assert not view.others("b", "n/0", "d")


def test_changes_are_followed() -> None:
    view = listed()
    assert view.take(Changes((gone(keys.token("n/0"), 12),), 12))
    assert view.of("0").token is None
    assert view.of("0").seat is not None
    assert view.revision == 12
    assert view.take(Changes((gone(keys.spec("org/a"), 13),), 13))
    assert view.holder("org/a") is None
    assert view.take(Changes((put(keys.token("n/1"), TOKEN, 14), put(keys.seat("n/1"), SEAT, 14)), 14))
    assert view.of("1").token == Token(Holder("org/a", "n1"), 14)
    assert view.take(Changes((gone(keys.EPOCH, 15),), 15))
    assert view.of("0").epoch == ""


def test_a_listing_replaces_all() -> None:
    view = listed()
    view.take(Listing((), 3))
    assert view.of("0") == View("", 3)
    assert not view.engines


def test_what_is_not_the_daemons_is_passed_over() -> None:
    view = listed()
    for key in (keys.load("org/a"), keys.HEARTBEAT, keys.token("other/0"), keys.device("n/0"), "/elsewhere"):
        assert not view.take(Changes((put(key, b"anything", 20),), 20))
    assert view.revision == 20


def test_what_does_not_decode_or_speaks_for_another_counts_as_gone() -> None:
    view = listed()
    for key in (keys.token("n/0"), keys.seat("n/0"), keys.EPOCH, keys.spec("org/a")):
        assert view.take(Changes((put(key, b"{", 20),), 20))
    assert view.of("0") == View("", 20)
    assert view.holder("org/a") is None
    view.take(Changes((put(keys.spec("thief"), SPEC, 21),), 21))
    assert view.holder("thief") is None
