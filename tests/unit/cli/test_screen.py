"""The live screen without a terminal: keys in, what is shown and wished out."""

from __future__ import annotations

import msgspec
import pytest

from coordinator.cli.happenings import happened
from coordinator.cli.screen import EVENTS, QUIT, SORTS, WHY, Screen, Wish, keys, pressed
from coordinator.cli.view import DeviceView, ModelView, OperationView, View, Wake
from coordinator.core.model import Bytes, Decision, Order


def model(name: str, phase: str = "resident", **fields: object) -> ModelView:
    return ModelView(name, name, phase, ("local/0",), 100, 0, 0, **fields)  # type: ignore[arg-type]


MODELS = (
    msgspec.structs.replace(model("a"), waiting=1),
    msgspec.structs.replace(model("b", "offloaded"), bytes=900, wake=Wake(2.0, 5)),
    msgspec.structs.replace(model("c"), waiting=7, pinned=True),
)


def typed(text: str, screen: Screen | None = None) -> tuple[Screen, list[Wish]]:
    screen, wishes = screen or Screen(), []
    for key in keys(text.encode()):
        screen, wish = pressed(screen, key, MODELS)
        wishes += [wish] if wish is not None else []
    return screen, wishes


def names(screen: Screen) -> list[str]:
    return [one.model for one in screen.shown(MODELS)]


def test_keys_come_apart() -> None:
    assert keys(b"a\x1b[B\x1b[A\r\x7f\x1b") == ["a", "down", "up", "enter", "back", "escape"]


def test_sorting_goes_round() -> None:
    seen = [names(typed("s" * n)[0]) for n in range(len(SORTS) + 1)]
    assert seen[:5] == [["a", "b", "c"], ["b", "a", "c"], ["c", "a", "b"], ["b", "a", "c"], ["b", "a", "c"]]
    assert seen[0] == seen[-1]


def test_a_filter_is_typed_kept_and_dropped() -> None:
    screen, wishes = typed("/ofx\x7ffl")
    assert (screen.filter, names(screen), wishes) == ("offl", ["b"], [])
    assert typed("q", screen)[1] == []  # a letter, not the end
    kept, _ = typed("\r", screen)
    assert (kept.typing, kept.filter) == (False, "offl")
    assert typed("\x1b", kept)[0].filter == ""


def test_the_choice_stays_within_what_is_shown() -> None:
    assert typed("\x1b[A")[0].chosen == "a"
    assert typed("jjjjj")[0].chosen == "c"
    assert typed("jjk")[0].chosen == "a"


@pytest.mark.parametrize(
    ("text", "wishes"),
    [
        ("jp", [Wish("pin", "a")]),
        ("jjjp", [Wish("unpin", "c")]),
        ("jzy", [Wish("sleep", "a")]),
        ("jzn", []),
        ("jz\x1b", []),
        ("jjwy", [Wish("wake", "b")]),
        ("jdy", [Wish("drain", "a")]),
        ("p", []),
        ("q", [Wish(QUIT)]),
    ],
)
def test_what_is_wished(text: str, wishes: list[Wish]) -> None:
    assert typed(text)[1] == wishes


def test_the_last_line_says_what_a_key_will_do() -> None:
    assert typed("jz")[0].footer() == "sleep a? y / n"
    assert "filter: x" in typed("/x")[0].footer()
    assert "choose a model first" in typed("z")[0].footer()
    assert "q quit" in Screen().footer()
    assert len(Screen().footer()) <= 80
    assert "filter 'x': Esc drops it" in typed("/x\r")[0].footer()


@pytest.mark.parametrize(
    ("text", "below"),
    [("", EVENTS), ("e", ""), ("ee", EVENTS), ("?", EVENTS), ("j?", WHY), ("j??", ""), ("j?e", EVENTS)],
)
def test_what_stands_below_the_models(text: str, below: str) -> None:
    assert typed(text)[0].below == below


def view(*models: ModelView, leader: str = "c1", operation: OperationView | None = None, doubt: str = "") -> View:
    device = DeviceView("local/0", "host", 100, Bytes(), 100, (), operation)
    return View(leader, "", "", (device,), models, doubt=doubt)


def told(before: View, after: View, *decisions: Decision) -> list[str]:
    return [each.what for each in happened(before, after, decisions, 1.0)]


def test_what_happened_is_said_in_lines() -> None:
    a, offload = model("a"), OperationView("a", Order.OFFLOAD, entered=True)
    decision = Decision(n=1, at=0, order=Order.OFFLOAD, engine="a", devices=("local/0",), cause="room for b")
    assert told(view(a), view(a)) == []
    assert told(view(a), view(a, operation=offload), decision) == [
        "offload a: room for b",
        "a is at its offload on local/0",
    ]
    assert told(view(a, operation=offload), view(model("a", "offloaded"))) == [
        "offload of a on local/0 is over",
        "a is offloaded",
    ]
    changed = msgspec.structs.replace(a, waiting=2, pinned=True, error="no pages")
    assert told(view(a), view(changed)) == ["a is waited for", "a is pinned", "a says: no pages"]
    assert told(view(a), view(model("b"), leader="")) == ["c1 leads no more", "a is gone", "b is here, resident"]
    assert told(view(doubt="nothing heard"), view()) == ["etcd is heard again"]
    assert told(view(), View("c1", "", "", (), ())) == ["local/0 is gone: its daemon is away"]
