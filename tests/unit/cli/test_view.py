"""What vnpu-watch shows, from what stands in etcd."""

from __future__ import annotations

import io
import time

import msgspec
import pytest
from rich.console import Console

from coordinator.cli.render import bar, render
from coordinator.cli.view import Stream, Wake, build, remember
from coordinator.cli.watcher import Watcher
from coordinator.core import model
from coordinator.core.model import Bytes, Holder, Order, Phase
from coordinator.picture import Mirror, Picture
from coordinator.store import keys
from coordinator.store.base import Change, Changes, KeyValue, Listing

A, B = Holder("org/a", "n1"), Holder("b", "n2")
MIB = 1 << 20


def kv(key: str, value: model.Value | bytes, revision: int) -> KeyValue:
    data = value if isinstance(value, bytes) else msgspec.json.encode(value)
    return KeyValue(key, data, revision, revision)


def spec(holder: Holder, weights: int = 600 * MIB) -> model.Spec:
    return model.Spec(
        holder=holder,
        model=holder.engine,
        url="http://127.0.0.1:9",
        devices=("local/0",),
        pid=1,
        boot_id="b",
        footprint=Bytes(weights=weights, kv=64 * MIB),
    )


def device(closed: int, opened: model.Open | None = None) -> model.Device:
    owner = model.Owner(A, Bytes(weights=600 * MIB, kv=64 * MIB))
    return model.Device(
        driver="host", capacity=1 << 30, chunk=2 * MIB, epoch="e", closed=closed, open=opened, owners=(owner,)
    )


def values() -> dict[str, model.Value | bytes]:
    resident = model.Residency(
        holder=A,
        phase=Phase.RESIDENT,
        restored=600 * MIB,
        steps=(model.Step("enter", 0.02), model.Step("copy", 0.08)),
    )
    return {
        keys.coordinator("c1"): model.Coordinator(
            id="c1", admin_url="http://ad", gateway_url="http://gw", leading=True
        ),
        keys.coordinator("c2"): model.Coordinator(id="c2", admin_url="http://x", gateway_url="http://y"),
        keys.device("local/0"): device(closed=100),
        keys.seat("local/0"): model.Seat(holder=A, lease=1, order=Order.RESTORE, bytes=1, limit_s=60),
        keys.spec("org/a"): spec(A),
        keys.residency("org/a"): resident,
        keys.load("org/a"): model.Load(running=3, waiting=1),
        keys.spec("b"): spec(B),
        keys.residency("b"): model.Residency(holder=B, phase=Phase.OFFLOADED, error="no space"),
        keys.demand("c1", "org/a"): model.Demand(waiting=4),
        keys.demand("c2", "b"): model.Demand(waiting=2),
        keys.policy("b"): model.Policy(pin=True),
    }


@pytest.fixture
def picture() -> Picture:
    picture = Picture()
    picture.list(Listing(tuple(kv(key, value, 10) for key, value in values().items()), 10))
    return picture


def test_devices_are_charged_with_their_owners(picture):
    [shown] = build(picture, {}, 0.0).devices
    assert (shown.id, shown.driver, shown.free) == ("local/0", "host", (1 << 30) - 664 * MIB)
    assert shown.bytes == Bytes(weights=600 * MIB, kv=64 * MIB)
    assert [owner.engine for owner in shown.owners] == ["org/a"]
    assert shown.operation is None


def test_models_show_phase_queue_and_last_wake(picture):
    view = build(picture, remember({}, picture), 0.0)
    b, a = view.models
    assert (a.model, a.phase, a.running, a.waiting) == ("org/a", "resident", 3, 1 + 4)
    assert a.wake == Wake(pytest.approx(0.1), 600 * MIB)
    assert (b.phase, b.waiting, b.pinned, b.error, b.wake) == ("offloaded", 2, True, "no space", None)
    assert (view.leader, view.gateway, view.admin, view.doubt) == ("c1", "http://gw", "http://ad", "")


def test_models_show_the_newest_answer_s_first_byte_and_what_they_come_back_from(picture):
    b, a = build(picture, {}, 0.0).models
    assert (a.ttft, a.master, b.ttft, b.master) == (0.0, 0, 0.0, 0)
    wide = msgspec.structs.replace(spec(A), devices=("local/0", "local/1"), digest="d0,d1")
    change(picture, keys.spec("org/a"), wide)
    change(picture, keys.load("org/a"), model.Load(ttft=0.25), 12)
    _, a = build(picture, {}, 0.0).models
    assert (a.ttft, a.master) == (0.25, 1200 * MIB)
    console = Console(width=200)
    with console.capture() as captured:
        console.print(render(build(picture, {}, 0.0)))
    [line] = [line for line in captured.get().splitlines() if line.startswith("org/a")]
    assert "250 ms" in line
    assert line.count("1.2 GiB") + line.count("1.17 GiB") >= 1


def test_a_wake_that_copied_little_says_how_little(picture):
    view = build(picture, {"org/a": Wake(0.004, 8192)}, 0.0)
    console = Console(width=200, file=io.StringIO())
    with console.capture() as captured:
        console.print(render(view))
    assert "4 ms, 8.0 KiB" in captured.get()


def test_weights_on_their_way_are_those_of_the_engine_itself(picture):
    coming = model.Seed(host="h", port=1, family="f", have=1, total=4, source="b")
    change(picture, keys.seed("org/a", "x"), coming)
    b, a = build(picture, {}, 0.0).models
    assert a.stream == Stream(1, 4, "b")
    assert b.stream is None


def test_a_heartbeat_is_nothing_new_and_silence_is():
    mirror = Mirror(None)  # type: ignore[arg-type]
    mirror.picture.list(Listing(tuple(kv(key, value, 10) for key, value in values().items()), 10))
    mirror.heard = time.monotonic()
    watcher = Watcher(mirror)
    shown = watcher.view()
    change(mirror.picture, keys.HEARTBEAT, model.Heartbeat(n=1))
    assert watcher.view() is shown
    change(mirror.picture, keys.load("org/a"), model.Load(running=9), 12)
    assert watcher.view().models[1].running == 9
    mirror.heard -= 60
    assert "nothing heard" in watcher.view().doubt


def test_a_wake_is_remembered_after_the_model_has_left_and_forgotten_with_its_engine(picture):
    wakes = remember({}, picture)
    away = model.Residency(holder=A, phase=Phase.OFFLOADED, steps=(model.Step("drain", 9),))
    change(picture, keys.residency("org/a"), away)
    assert remember(wakes, picture) == wakes
    change(picture, keys.spec("org/a"), None)
    assert remember(wakes, picture) == {}


def change(picture: Picture, key: str, value: model.Value | bytes | None, revision: int = 11) -> None:
    new = None if value is None else kv(key, value, revision)
    picture.change(Changes((Change(key, new, revision),), revision))


@pytest.mark.parametrize(
    ("state", "shown"),
    [
        (device(closed=9), ("org/a", Order.RESTORE, False)),
        (device(closed=10), None),
        (device(9, model.Open(B, 10, Order.OFFLOAD)), ("b", Order.OFFLOAD, True)),
    ],
)
def test_an_operation_is_granted_then_entered_then_closed(picture, state, shown):
    change(picture, keys.device("local/0"), state)
    [got] = build(picture, {}, 0.0).devices
    assert (got.operation and (got.operation.engine, got.operation.order, got.operation.entered)) == shown


def test_what_does_not_decode_is_named_and_not_shown(picture):
    change(picture, keys.residency("b"), b"{")
    view = build(picture, {}, 0.0)
    assert view.quarantined == (keys.residency("b"),)
    assert view.models[0].phase == "stopped"
    change(picture, keys.residency("b"), values()[keys.residency("b")])
    assert build(picture, {}, 0.0).quarantined == ()


def test_keys_of_others_are_passed_over(picture):
    change(picture, keys.ROOT + "engines/x/kv", b"?")
    change(picture, keys.ELECTION + "9", b"?")
    assert not picture.quarantined


@pytest.mark.parametrize(
    ("silent", "doubt"), [(None, "etcd has not answered"), (2.9, ""), (4.2, "nothing heard for 4 s: etcd is away")]
)
def test_silence_is_said(picture, silent, doubt):
    assert build(picture, {}, silent).doubt.startswith(doubt)
    assert bool(build(picture, {}, silent).doubt) == bool(doubt)


def test_a_listing_replaces_everything(picture):
    picture.list(Listing((), 20))
    view = build(picture, {}, 0.0)
    assert (view.devices, view.models, view.leader) == ((), (), "")
    assert picture.written(model.Spec, "b") == 0


def test_a_view_survives_json_and_is_drawn(picture):
    view = build(picture, remember({}, picture), 5.0)
    assert msgspec.json.decode(msgspec.json.encode(view), type=type(view)) == view
    console = Console(width=200)
    with console.capture() as captured:
        console.print(render(view))
    text = captured.get()
    for words in (
        "leader c1",
        "nothing heard for 5 s",
        "664 MiB",
        "resident",
        "100 ms, 6.3 GB/s",
        "pinned",
        "no space",
    ):
        assert words in text


@pytest.mark.parametrize(
    ("held", "drawn"),
    [
        (Bytes(), "·········· "),
        (Bytes(weights=50, kv=30), "████████·· "),
        (Bytes(weights=1, kv=1), "██········ "),
        (Bytes(weights=1000, kv=1000), "██████████ "),
    ],
)
def test_a_bar_is_as_wide_as_the_device(held, drawn):
    assert bar(held, 100, 10).plain == drawn.rstrip()


def test_more_models_than_rows_are_counted(picture):
    console = Console(width=200)
    with console.capture() as captured:
        console.print(render(build(picture, {}, 0.0), rows=1))
    assert "… and 1 more" in captured.get()


def test_on_a_narrow_terminal_the_bar_gives_way_to_the_names(picture):
    console = Console(width=80)
    with console.capture() as captured:
        console.print(render(build(picture, {}, 0.0), width=80))
    assert "local/0" in captured.get()
    assert "664 MiB" in captured.get()


def test_weights_on_their_way_from_another_engine_are_shown():
    picture = Picture()
    loading = model.Seed(host="h", port=1, family="f", total=400, have=100, source="b at h:2")
    second = msgspec.structs.replace(loading, rank=1, have=300)
    found = {
        keys.spec("org/a"): spec(A),
        keys.spec("b"): spec(B),
        keys.seed("org/a", "x0"): loading,
        keys.seed("org/a", "x1"): second,
        keys.seed("b", "x0"): model.Seed(host="h", port=2, family="f", total=400, have=400),
    }
    picture.list(Listing([kv(key, value, n) for n, (key, value) in enumerate(found.items(), 1)], 9))
    view = build(picture, {}, 0.0)
    assert [one.stream for one in view.models] == [None, Stream(400, 800, "b at h:2")]
    console = Console(record=True, width=160, file=io.StringIO())
    console.print(render(view))
    assert "50 % streamed from b at h:2" in console.export_text()
