"""Keys and bytes to facts: every kind of key, every kind of garbage."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.core.events import (
    Changed,
    DecisionSeen,
    DemandSeen,
    DeviceSeen,
    EpochSeen,
    Fact,
    Listed,
    LoadSeen,
    PolicySeen,
    ResidencySeen,
    SeatSeen,
    SpecSeen,
    TokenSeen,
)
from coordinator.core.model import (
    Bytes,
    Decision,
    Demand,
    Device,
    Epoch,
    Heartbeat,
    Holder,
    Load,
    Order,
    Phase,
    Policy,
    Residency,
    Seat,
    Spec,
    Token,
    Value,
)
from coordinator.errors import SchemaError
from coordinator.store import keys
from coordinator.store.base import Change, Changes, KeyValue, Listing
from coordinator.store.codec import MAX_VALUE, decode, encode
from coordinator.store.facts import Quarantined, Reader, of_change, of_kv

ENGINE, DEVICE, MODEL, GATEWAY = "org/qwen-a", "node/1/0", "org/qwen", "gw%1"
HOLDER = Holder(ENGINE, "nonce")
SPEC = Spec(
    holder=HOLDER, model=MODEL, url="http://e", devices=(DEVICE,), pid=1, boot_id="boot", footprint=Bytes(weights=5)
)
RESIDENCY = Residency(holder=HOLDER, phase=Phase.RESIDENT)
STATE = Device(driver="host", capacity=10, chunk=2, epoch="e")
TOKEN = Token(holder=HOLDER, lease=7, order=Order.RESTORE, bytes=5)
SEAT = Seat(holder=HOLDER, lease=7, order=Order.RESTORE, bytes=5, limit_s=60)

KINDS: list[tuple[str, Value, Fact, Fact]] = [
    (keys.EPOCH, Epoch(id="e"), EpochSeen(Epoch(id="e"), 9), EpochSeen(None, 9)),
    (keys.spec(ENGINE), SPEC, SpecSeen(ENGINE, SPEC, 9, 4), SpecSeen(ENGINE, None, 9)),
    (keys.residency(ENGINE), RESIDENCY, ResidencySeen(ENGINE, RESIDENCY, 9), ResidencySeen(ENGINE, None, 9)),
    (keys.load(ENGINE), Load(running=1), LoadSeen(ENGINE, Load(running=1), 9), LoadSeen(ENGINE, None, 9)),
    (keys.device(DEVICE), STATE, DeviceSeen(DEVICE, STATE, 9), DeviceSeen(DEVICE, None, 9)),
    (keys.token(DEVICE), TOKEN, TokenSeen(DEVICE, TOKEN, 9), TokenSeen(DEVICE, None, 9)),
    (keys.seat(DEVICE), SEAT, SeatSeen(DEVICE, SEAT, 9), SeatSeen(DEVICE, None, 9)),
    (keys.policy(MODEL), Policy(pin=True), PolicySeen(MODEL, Policy(pin=True), 9), PolicySeen(MODEL, None, 9)),
    (
        keys.demand(GATEWAY, MODEL),
        Demand(waiting=2),
        DemandSeen(GATEWAY, MODEL, Demand(waiting=2)),
        DemandSeen(GATEWAY, MODEL, None),
    ),
]


def kv(key: str, value: bytes) -> KeyValue:
    return KeyValue(key, value, 3, 9, 4)


@pytest.mark.parametrize(("key", "value", "seen", "gone"), KINDS, ids=lambda one: None)
def test_every_kind_of_key_is_a_fact_there_and_gone(key: str, value: Value, seen: Fact, gone: Fact) -> None:
    assert of_kv(kv(key, encode(value))) == seen
    assert of_change(Change(key, None, 9)) == gone


@pytest.mark.parametrize(("key", "value", "seen", "gone"), KINDS, ids=lambda one: None)
@pytest.mark.parametrize(
    "garbage",
    [b"", b"{}", b"null", b"[]", b"\xff", b'{"v":2}', b"{" * 5000, b"[" * 200_000, b'"' + b"x" * MAX_VALUE + b'"'],
    ids=["empty", "no fields", "null", "list", "no utf-8", "newer", "cut", "deep", "large"],
)
def test_garbage_is_quarantined_and_counts_as_gone(
    key: str, value: Value, seen: Fact, gone: Fact, garbage: bytes
) -> None:
    if garbage == b"{}" and isinstance(seen, PolicySeen | LoadSeen):
        garbage = b'{"v":0}'  # all their fields have defaults
    fact = of_kv(kv(key, garbage))
    assert isinstance(fact, Quarantined)
    assert (fact.key, fact.revision, fact.size, fact.gone) == (key, 9, len(garbage), gone)
    assert 0 < len(fact.reason) <= 300


@pytest.mark.parametrize(("key", "value", "seen", "gone"), KINDS, ids=lambda one: None)
def test_fields_of_a_newer_writer_are_ignored(key: str, value: Value, seen: Fact, gone: Fact) -> None:
    newer = encode(value)[:-1] + b',"some_day":{"a":[1]}}'
    assert of_kv(kv(key, newer)) == seen


@pytest.mark.parametrize(
    "key",
    [
        keys.HEARTBEAT,
        f"{keys.ELECTION}1f",
        keys.daemon("n"),
        keys.coordinator("c"),
        f"{keys.ROOT}engines/a/kv",
        f"{keys.ROOT}engines/a/spec/deeper",
        "/elsewhere/epoch",
        keys.ROOT,
    ],
)
def test_other_keys_are_no_facts(key: str) -> None:
    assert of_kv(kv(key, b"\xff")) is None


@pytest.mark.parametrize(
    "key",
    [
        f"{keys.ROOT}engines//spec",
        f"{keys.ROOT}engines/a%2fb/spec",
        f"{keys.ROOT}engines/a b/spec",
        f"{keys.ROOT}engines/%ff/load",
        f"{keys.ROOT}engines/{'x' * 257}/load",
        f"{keys.ROOT}nodes/n/devices/a%2Fb",
        f"{keys.ROOT}tokens//0",
        f"{keys.ROOT}policy/\udcff",
    ],
)
def test_another_spelling_of_an_id_is_nobody_s(key: str) -> None:
    fact = of_kv(kv(key, b"{}"))
    assert isinstance(fact, Quarantined)
    assert fact.gone is None
    assert isinstance(of_change(Change(key, None, 9)), Quarantined)


def test_a_decision_that_stands_is_a_fact_and_its_end_is_none() -> None:
    decision = Decision(n=7, at=1.0, order=Order.RESTORE, engine=ENGINE, devices=(DEVICE,), cause="demand")
    assert of_kv(kv(keys.decision(7), encode(decision))) == DecisionSeen(7)
    assert of_change(Change(keys.decision(7), None, 9)) is None
    assert isinstance(of_kv(kv(keys.decision(7), b"{}")), Quarantined)


def test_an_engine_speaks_for_itself_only() -> None:
    fact = of_kv(kv(keys.spec("other"), encode(SPEC)))
    assert isinstance(fact, Quarantined)
    assert (fact.gone, "speaks for engine" in fact.reason) == (SpecSeen("other", None, 9), True)
    assert isinstance(of_kv(kv(keys.residency("other"), encode(RESIDENCY))), Quarantined)


def test_a_reader_makes_events_and_keeps_the_quarantine() -> None:
    reader = Reader()
    good, bad, other = keys.policy("a"), keys.policy("b"), keys.HEARTBEAT
    listing = Listing((kv(good, b"{}"), kv(bad, b"!"), kv(other, encode(Heartbeat(n=1)))), 12)
    assert reader.listed(listing) == Listed((PolicySeen("a", Policy(), 9), PolicySeen("b", None, 9)), 12)
    assert (list(reader.quarantined), reader.rejected) == ([bad], 1)
    changes = Changes((Change(bad, None, 13), Change(good, KeyValue(good, b"?", 3, 13), 13)), 13)
    assert reader.changed(changes) == Changed((PolicySeen("b", None, 13), PolicySeen("a", None, 13)), 13)
    assert (list(reader.quarantined), reader.rejected) == ([good], 2)
    assert reader.listed(Listing((), 14)) == Listed((), 14)
    assert (reader.quarantined, reader.rejected) == ({}, 2)


@given(st.binary(max_size=200), st.sampled_from([key for key, *_ in KINDS]))
def test_no_bytes_raise(data: bytes, key: str) -> None:
    of_kv(kv(key, data))


@given(st.text(max_size=60), st.binary(max_size=10))
def test_no_key_raises(rest: str, data: bytes) -> None:
    of_kv(kv(keys.ROOT + rest, data))
    of_change(Change(keys.ROOT + rest, None, 1))


@given(st.text(min_size=1, max_size=60), st.text(min_size=1, max_size=60))
def test_any_id_survives_the_way_into_a_key_and_back(one: str, two: str) -> None:
    assert of_change(Change(keys.demand(one, two), None, 1)) == DemandSeen(one, two, None)
    assert of_change(Change(keys.policy(one), None, 1)) == PolicySeen(one, None, 1)


def test_the_reason_names_the_field() -> None:
    with pytest.raises(SchemaError, match=r"no Token: .*bytes"):
        decode(Token, encode(TOKEN).replace(b'"bytes":5', b'"bytes":-5'))
