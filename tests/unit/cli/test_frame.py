"""The live screen as a whole, drawn for terminals of several sizes."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from coordinator.cli.frame import frame, shares
from coordinator.cli.happenings import Happening
from coordinator.cli.screen import EVENTS, HELP, WHY, Screen
from coordinator.cli.view import DeviceView, HostView, ModelView, OperationView, OwnerView, View, Wake
from coordinator.core.model import Bytes, Decision, Holder, Order, Phase, Spec
from coordinator.picture import Picture
from coordinator.store import keys
from coordinator.store.base import KeyValue, Listing
from coordinator.store.codec import encode

MIB = 1 << 20
SIZES = [(80, 24), (120, 40), (60, 16), (200, 60), (80, 10)]
NAMES = ("qwen-large", "llama-medium", "qwen2-medium")


def model(name: str, **fields: object) -> ModelView:
    told = {"running": 2, "waiting": 13, "wake": Wake(0.395, 1109 * MIB), "ttft": 0.25, "master": 1024 * MIB, **fields}
    return ModelView(name, name, Phase.RESIDENT, ("local/0",), 1109 * MIB, **told)  # type: ignore[arg-type]


def view(*models: ModelView) -> View:
    device = DeviceView(
        id="local/0",
        driver="host",
        capacity=1900 * MIB,
        bytes=Bytes(weights=1000 * MIB, kv=109 * MIB),
        free=791 * MIB,
        owners=tuple(OwnerView(each.engine, Bytes(), alive=True) for each in models[:3]),
        operation=OperationView("llama-medium", Order.RESTORE, entered=False),
    )
    where = ("http://127.0.0.1:8080", "http://127.0.0.1:8081")
    return View("node-7f3a-4242", *where, (device,), models, hosts=(HostView("local", 0, 2 << 30, 0),))


def happenings(count: int) -> list[Happening]:
    return [Happening(float(n), "model", "a", f"event {n}") for n in range(count)]


def drawn(width: int, height: int, shown: View, screen: Screen, told: list[Happening], picture: Picture) -> list[str]:
    """The lines of the terminal."""
    console = Console(width=width, height=height, file=io.StringIO())
    with console.capture() as captured:
        console.print(frame(shown, picture, told, screen, console))
    return captured.get().rstrip("\n").split("\n")


@pytest.mark.parametrize(("width", "height"), SIZES)
@pytest.mark.parametrize("count", [0, 1, 3, 1000])
@pytest.mark.parametrize("below", ["", EVENTS, WHY])
def test_it_has_as_many_lines_as_the_terminal_and_the_keys_are_the_last(
    width: int, height: int, count: int, below: str
) -> None:
    shown = view(*(model(f"model-{n:04}") for n in range(count)))
    lines = drawn(width, height, shown, Screen(below=below, chosen="model-0000"), happenings(100), Picture())
    assert len(lines) == height
    assert lines[-1].startswith(HELP[: width - 1])
    assert all(len(line.rstrip()) <= width for line in lines)


@pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 40)])
def test_no_figure_is_cut_and_every_key_is_named(width: int, height: int) -> None:
    names = ("a-model-with-a-rather-long-name", *NAMES[1:])
    shown = view(*(model(name, pinned=True, error="a long story about what went wrong") for name in names))
    lines = drawn(width, height, shown, Screen(), happenings(3), Picture())
    for name in names[1:]:
        [line] = [line for line in lines if line.startswith(name[:8])]
        for figure in ("resident", "1.1 GiB", "13", "395 ms, 2.9 GB/s"):
            assert figure in line, line
    [bar] = [line for line in lines if "host " in line and "█" in line]
    assert "1.1 GiB" in bar
    assert "1.9 GiB" in bar
    assert lines[-1] == HELP
    assert lines[0].startswith("vNPU  leader node-7f3a-4242")
    assert any("admin http://127.0.0.1:8081" in line for line in lines[:2])


def test_few_models_leave_their_room_to_what_happens() -> None:
    lines = drawn(120, 40, view(model("a")), Screen(), happenings(100), Picture())
    assert sum("event " in line for line in lines) == 28
    assert "event 99" in lines[-2]


def test_many_models_leave_a_third_to_what_happens() -> None:
    shown = view(*(model(f"model-{n:04}") for n in range(1000)))
    lines = drawn(120, 40, shown, Screen(chosen="model-0500"), happenings(100), Picture())
    assert sum("event " in line for line in lines) >= 8
    assert sum("model-0" in line for line in lines) >= 15
    assert any("model-0500" in line for line in lines)
    assert any("more" in line for line in lines)


def test_why_is_told_of_the_chosen_model() -> None:
    spec = Spec(holder=Holder("a", "x"), model="a", url="u", devices=("n/0",), pid=1, boot_id="b", footprint=Bytes())
    decision = Decision(n=1, at=0, order=Order.OFFLOAD, engine="a", devices=("n/0",), cause="room for b")
    picture = Picture()
    stands = ((keys.spec("a"), encode(spec)), (keys.decision(1), encode(decision)))
    picture.list(Listing(tuple(KeyValue(key, value, 1, 9) for key, value in stands), 9))
    lines = drawn(120, 30, view(model("a"), model("b")), Screen(below=WHY, chosen="a"), [], picture)
    assert any(line.startswith("why a") for line in lines)
    assert any(line.startswith("a left on n/0  decision 1, revision 9") for line in lines)
    assert any("because room for b" in line for line in lines)
    lines = drawn(120, 30, view(model("a")), Screen(below=WHY), [], picture)
    assert any("choose a model" in line for line in lines)


def test_the_column_that_is_sorted_by_is_marked() -> None:
    lines = drawn(120, 30, view(model("a")), Screen(sort="waiting"), [], Picture())
    assert [line.count("▾") for line in lines if "▾" in line] == [1]
    assert any("waits ▾" in line for line in lines)


@pytest.mark.parametrize("room", range(1, 60))
@pytest.mark.parametrize("models", [1, 3, 30, 1001])
def test_shares_are_all_there_is(room: int, models: int) -> None:
    above, below = shares(room, models, below=True)
    assert below == 0 or above + below == room
    assert above <= models or below == 0
    assert below == 0 or below >= min(4, room // 3)
