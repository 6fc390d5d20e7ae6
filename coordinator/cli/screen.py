"""The live screen's own state: what is selected, sorted, filtered, asked. Pure: a key in, a screen and a wish out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import msgspec

from coordinator.cli.view import ModelView

QUIT = "quit"
EVENTS, WHY = "events", "why"
SORTS: Mapping[str, Callable[[ModelView], object]] = {
    "name": lambda model: model.model,
    "phase": lambda model: (model.phase, model.model),
    "waiting": lambda model: (-model.waiting, model.model),
    "size": lambda model: (-model.bytes, model.model),
    "wake": lambda model: (-(model.wake.seconds if model.wake else 0.0), model.model),
    "ttft": lambda model: (-model.ttft, model.model),
}
HELP = "↑↓  s sort  / find  p pin  w wake  z sleep  d drain  ? why  e events  q quit"
"""No wider than the narrowest terminal."""
_ESCAPES = {b"\x1b[A": "up", b"\x1b[B": "down", b"\x1bOA": "up", b"\x1bOB": "down", b"\x1b": "escape"}


class Wish(msgspec.Struct, frozen=True):
    """To be done: one of `operate.ACTS`, or QUIT."""

    what: str
    model: str = ""


class Screen(msgspec.Struct, frozen=True):
    """`asking`: a wish that waits for y; `typing`: letters go into `filter`; `below`: what stands below the models,
    `EVENTS`, `WHY` or nothing; `said`: the line at the bottom."""

    chosen: str = ""
    sort: str = "name"
    filter: str = ""
    typing: bool = False
    asking: Wish | None = None
    below: str = EVENTS
    said: str = ""

    def shown(self, models: Sequence[ModelView]) -> list[ModelView]:
        """Those that the filter lets through, in order."""
        wanted = self.filter.lower()
        passed = [one for one in models if wanted in f"{one.model} {one.engine} {one.phase}".lower()]
        return sorted(passed, key=SORTS[self.sort])  # type: ignore[arg-type]

    def footer(self) -> str:
        if self.asking is not None:
            return f"{self.asking.what} {self.asking.model}? y / n"
        if self.typing:
            return f"filter: {self.filter}▏  Enter keeps it, Esc drops it"
        return self.said or (f"filter {self.filter!r}: Esc drops it  " if self.filter else "") + HELP


def keys(data: bytes) -> list[str]:
    """What was pressed: letters, or up, down, escape, enter, back."""
    found = []
    while data:
        escape = next((each for each in sorted(_ESCAPES, key=len, reverse=True) if data.startswith(each)), b"")
        if escape:
            found.append(_ESCAPES[escape])
            data = data[len(escape) :]
            continue
        text = data[:1].decode("ascii", "replace")
        found.append({"\r": "enter", "\n": "enter", "\x7f": "back", "\x08": "back"}.get(text, text))
        data = data[1:]
    return found


def pressed(screen: Screen, key: str, models: Sequence[ModelView]) -> tuple[Screen, Wish | None]:
    """The next screen, and what is to be done now."""
    if screen.asking is not None:
        wish = screen.asking if key in ("y", "Y") else None
        return msgspec.structs.replace(screen, asking=None, said="" if wish else "left as it is"), wish
    if screen.typing:
        return _typed(screen, key), None
    shown = screen.shown(models)
    screen = msgspec.structs.replace(screen, said="")
    if key in ("q", "Q", "\x03"):
        return screen, Wish(QUIT)
    if key in ("up", "down", "k", "j"):
        return _moved(screen, shown, -1 if key in ("up", "k") else 1), None
    if key in _PLAIN:
        return _PLAIN[key](screen), None
    return _acted(screen, key, shown)


def _typed(screen: Screen, key: str) -> Screen:
    if key == "enter":
        return msgspec.structs.replace(screen, typing=False)
    if key == "escape":
        return msgspec.structs.replace(screen, typing=False, filter="")
    text = screen.filter[:-1] if key == "back" else screen.filter + (key if len(key) == 1 and key.isprintable() else "")
    return msgspec.structs.replace(screen, filter=text)


def _moved(screen: Screen, shown: Sequence[ModelView], step: int) -> Screen:
    if not shown:
        return screen
    names = [one.engine for one in shown]
    at = names.index(screen.chosen) + step if screen.chosen in names else 0
    return msgspec.structs.replace(screen, chosen=names[max(0, min(at, len(names) - 1))])


def _next_sort(screen: Screen) -> Screen:
    names = list(SORTS)
    return msgspec.structs.replace(screen, sort=names[(names.index(screen.sort) + 1) % len(names)])


def _below(screen: Screen, what: str) -> Screen:
    """There, or away where it was there."""
    return msgspec.structs.replace(screen, below="" if screen.below == what else what)


_PLAIN: Mapping[str, Callable[[Screen], Screen]] = {
    "s": _next_sort,
    "/": lambda screen: msgspec.structs.replace(screen, typing=True),
    "e": lambda screen: _below(screen, EVENTS),
    "escape": lambda screen: msgspec.structs.replace(screen, filter=""),
}


def _acted(screen: Screen, key: str, shown: Sequence[ModelView]) -> tuple[Screen, Wish | None]:
    """Sleep and drain ask first: they take a model away from those who use it."""
    if key not in ("p", "w", "z", "d", "?"):
        return screen, None
    model = next((one for one in shown if one.engine == screen.chosen), None)
    if model is None:
        return msgspec.structs.replace(screen, said="choose a model first: ↑ ↓"), None
    if key == "?":
        return _below(screen, WHY), None
    words = {
        "p": "unpin" if model.pinned else "pin",
        "w": "wake",
        "z": "sleep",
        "d": "resume" if model.drained else "drain",
    }
    wish = Wish(words[key], model.model)
    if wish.what in ("sleep", "drain", "wake"):
        return msgspec.structs.replace(screen, asking=wish), None
    return screen, wish
