"""The live screen of `vnpu-watch` as a whole: exactly as many lines as the terminal has, the last of them for keys."""

from __future__ import annotations

from collections.abc import Collection

from rich.console import Console, Group
from rich.segment import SegmentLines
from rich.text import Text

from coordinator.cli.explanation import explain, sentences
from coordinator.cli.happenings import Happening
from coordinator.cli.render import WIDE, overview, render_events, render_models
from coordinator.cli.screen import EVENTS, Screen
from coordinator.cli.view import View
from coordinator.errors import VnpuError
from coordinator.picture import Picture

LEAST_BELOW = 4
"""Lines: an empty one, a title, and two that say something."""


def frame(view: View, picture: Picture, happenings: Collection[Happening], screen: Screen, console: Console) -> Group:
    """What is below the models gets what they leave, and a third of it at least."""
    width, height = console.size
    top = overview(view, width)
    room = height - 2 - len(console.render_lines(top, pad=False))
    models = len(screen.shown(view.models))
    above, below = shares(room, models + 1, below=bool(screen.below))
    rows = models if above > models else above - 2
    parts = [top, Text(), render_models(view.models, rows, screen, wide=width >= WIDE)]
    if below:
        parts += [Text(), *_below(view, picture, happenings, screen, below - 2)]
    lines = console.render_lines(Group(*parts), pad=False)[: height - 1]
    lines += [[]] * (height - 1 - len(lines))
    return Group(SegmentLines(lines, new_lines=True), _footer(screen))


def shares(room: int, models: int, *, below: bool) -> tuple[int, int]:
    """Of `room` lines those for the models, which want as many as `models` with their heading, and those below."""
    least = max(room // 3, LEAST_BELOW)
    if not below or room < 2 * LEAST_BELOW:
        return max(room, 3), 0
    above = min(models, room - least)
    return above, room - above


def _below(
    view: View, picture: Picture, happenings: Collection[Happening], screen: Screen, rows: int
) -> tuple[Text, Text]:
    """A title, and at most `rows` lines."""
    if screen.below == EVENTS:
        said = render_events(happenings, rows) if happenings else Text("nothing yet", style="dim")
        return Text("what happens", style="dim"), said
    model = next((one.model for one in view.models if one.engine == screen.chosen), "")
    try:
        said = sentences(explain(picture, model), model) if model else Text("choose a model: ↑ ↓", style="dim")
    except VnpuError as error:
        said = Text(str(error), style="red")
    return Text(f"why {model}", style="dim"), Text("\n", no_wrap=True, overflow="ellipsis").join(said.split()[:rows])


def _footer(screen: Screen) -> Text:
    return Text(screen.footer(), style="bold yellow" if screen.asking else "dim", no_wrap=True, overflow="ellipsis")
