"""A `View` on a terminal: devices as bars by kind, models as a table."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from coordinator.cli.happenings import Happening
from coordinator.cli.screen import Screen
from coordinator.cli.view import DeviceView, HostView, ModelView, OperationView, View
from coordinator.core.model import Bytes, Phase
from coordinator.sizes import show_duration, show_size

BAR_WIDTH = 40
LEAST_SPEED = 0.1
"""GB/s: below, little was copied, and the bytes say more."""
LEAST_BAR = 8
WIDE = 110
"""From here on there is room for all that is known of a model."""
BESIDE_BAR = 70
"""Columns that the rest of a device's line takes."""
_CUT = ("model", "device", "held by", "now", "notes")
"""Columns that give way where the terminal is narrow; figures are never cut."""
SORTED = {"name": "model", "phase": "phase", "waiting": "waits", "size": "size", "wake": "last wake", "ttft": "TTFT"}
"""The column by which each of `screen.SORTS` sorts."""
KINDS = {"weights": "blue", "kv": "green", "cached": "bright_black", "overhead": "yellow"}
EVENTS = {"decision": "cyan", "device": "blue", "leader": "bold magenta"}
PHASES = {
    Phase.RESIDENT: "bold green",
    Phase.RESTORING: "cyan",
    Phase.STARTING: "cyan",
    Phase.DRAINING: "yellow",
    Phase.OFFLOADED: "dim",
    Phase.STOPPED: "dim",
    Phase.FAILED: "bold red",
    Phase.LOST: "bold red",
}


def render(
    view: View, width: int = BESIDE_BAR + BAR_WIDTH, rows: int | None = None, screen: Screen | None = None
) -> RenderableType:
    """`width`: columns of the terminal; `rows`: how many models there is room for; None: all. `screen`: which are
    shown, in which order, and which is chosen."""
    return Group(overview(view, width), Text(), render_models(view.models, rows, screen, wide=width >= WIDE))


def overview(view: View, width: int) -> RenderableType:
    """All but the models: who leads, devices, host memory, what is wrong."""
    bars = max(LEAST_BAR, min(BAR_WIDTH, width - BESIDE_BAR))
    parts = [_header(view, width), Text(), _devices(view.devices, bars), *_hosts(view.hosts)]
    if view.quarantined:
        parts += [Text(), Text(f"not understood, and ignored: {', '.join(view.quarantined)}", style="red")]
    return Group(*parts)


def bar(held: Bytes, capacity: int, width: int = BAR_WIDTH) -> Text:
    """`capacity` as `width` cells; a kind that holds anything is seen."""
    text, left = Text(), width
    for kind, style in KINDS.items():
        size = getattr(held, kind)
        cells = min(left, max(1, round(width * size / capacity))) if size and capacity else 0
        text.append("█" * cells, style)
        left -= cells
    return text.append("·" * left, "dim")


def _header(view: View, width: int) -> Text:
    text = Text.assemble(("vNPU", "bold"), "  ", (f"leader {view.leader}" if view.leader else "nobody leads", "dim"))
    if view.gateway:
        where = f"gateway {view.gateway}/v1  admin {view.admin}"
        text.append("  " if len(text) + 2 + len(where) <= width else "\n").append(where, "dim")
    if view.doubt:
        text.append(f"\n{view.doubt}", "bold red")
    return text


def _devices(devices: Sequence[DeviceView], bar_width: int) -> RenderableType:
    if not devices:
        return Text("no device: no daemon is there", style="dim")
    table = _table("device", "driver", "", "used", "of", "held by", "now")
    for device in devices:
        table.add_row(
            device.id,
            device.driver,
            bar(device.bytes, device.capacity, bar_width),
            show_size(device.capacity - device.free),
            show_size(device.capacity),
            _cut(", ".join(owner.engine + ("" if owner.alive else " (dead)") for owner in device.owners) or "–"),
            _operation(device.operation),
        )
    kinds = [Text.assemble(("█ ", style), kind) for kind, style in KINDS.items()]
    return Group(table, Text.assemble("  ", Text("  ").join([*kinds, Text("· free")]), style="dim"))


def _cut(text: str, style: str = "") -> Text:
    """Of a column of `_CUT`."""
    return Text(" ".join(text.split()), style, no_wrap=True, overflow="ellipsis")


def _operation(operation: OperationView | None) -> Text:
    if operation is None:
        return Text("–", style="dim")
    return _cut(f"{operation.order} {operation.engine}" + ("" if operation.entered else " (granted)"), "cyan")


def _hosts(hosts: Sequence[HostView]) -> Iterator[RenderableType]:
    """Host memory that a node has for models that are away; no line where none is counted."""
    for host in hosts:
        if host.masters or host.saved_kv or host.total:
            limit = f" of {show_size(host.total)}" if host.total else ""
            used = f"masters {show_size(host.masters)}, saved KV {show_size(host.saved_kv)}{limit}"
            yield Text(f"  host memory of {host.node}: {used}", style="dim")


def render_events(happenings: Iterable[Happening], rows: int) -> Text:
    """The newest `rows` of them, the newest last."""
    text = Text(no_wrap=True, overflow="ellipsis")
    for each in list(happenings)[-rows:] if rows else []:
        at = time.strftime("%H:%M:%S", time.localtime(each.at))
        text.append(f"{at} ", "dim").append(f"{each.kind:<9}", EVENTS.get(each.kind, "")).append(f"{each.what}\n")
    text.rstrip()
    return text


def _window(models: Sequence[ModelView], rows: int | None, chosen: str) -> Sequence[ModelView]:
    """As many as there is room for, the chosen one among them."""
    if rows is None:
        return models
    rows = max(rows, 1)
    at = next((n for n, model in enumerate(models) if model.engine == chosen), 0)
    start = max(0, min(at - rows // 2, len(models) - rows))
    return models[start : start + rows]


def render_models(
    models: Sequence[ModelView], rows: int | None = None, screen: Screen | None = None, *, wide: bool = True
) -> RenderableType:
    """One line an engine; without `wide` no host masters and no TTFT."""
    chosen = screen.chosen if screen is not None else ""
    models = screen.shown(models) if screen is not None else models
    if not models:
        return Text(
            "no engine is registered" if screen is None or not screen.filter else "none is like that", style="dim"
        )
    shown = _window(models, rows, chosen)
    columns = [column for column in _COLUMNS if wide or column not in _FOR_WIDE]
    table = _table(*columns, sorted_by=SORTED[screen.sort] if screen is not None else "")
    for model in shown:
        cells = (_COLUMNS[column](model) for column in columns)
        table.add_row(*cells, style="reverse" if chosen and model.engine == chosen else "")
    more = len(models) - len(shown)
    return Group(table, Text(f"… and {more} more", style="dim")) if more else table


def _wake(model: ModelView) -> str:
    wake = model.wake
    if wake is None or wake.seconds <= 0:
        return "–"
    speed = wake.bytes / wake.seconds / 1e9
    return f"{show_duration(wake.seconds)}, {f'{speed:.1f} GB/s' if speed >= LEAST_SPEED else show_size(wake.bytes)}"


def _notes(model: ModelView) -> Text:
    words = [word for word, said in (("pinned", model.pinned), ("drained", model.drained)) if said]
    if model.stream is not None:
        words.append(f"{model.stream.have * 100 // max(1, model.stream.total)} % streamed from {model.stream.source}")
    return (
        _cut("")
        .append(" ".join(words), "magenta")
        .append(" " * bool(words))
        .append(" ".join(model.error.split()), "red")
    )


_COLUMNS: Mapping[str, Callable[[ModelView], str | Text]] = {
    "model": lambda model: _cut(model.model if model.model == model.engine else f"{model.model} ({model.engine})"),
    "phase": lambda model: Text(model.phase, style=PHASES.get(Phase(model.phase), "")),
    "device": lambda model: _cut(", ".join(model.devices)),
    "size": lambda model: show_size(model.bytes),
    "master": lambda model: show_size(model.master) if model.master else "–",
    "runs": lambda model: str(model.running or "–"),
    "waits": lambda model: Text(str(model.waiting), style="bold yellow") if model.waiting else Text("–"),
    "TTFT": lambda model: show_duration(model.ttft) if model.ttft else "–",
    "last wake": _wake,
    "notes": _notes,
}
_FOR_WIDE = ("master", "TTFT")


def _table(*headings: str, sorted_by: str = "") -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading in headings:
        right = heading in ("size", "master", "used", "of", "runs", "waits", "TTFT")
        shown = f"{heading} ▾" if heading and heading == sorted_by else heading * (heading != "notes")
        table.add_column(shown, justify="right" if right else "left", no_wrap=heading not in _CUT)
    return table
