"""`keep_alive` of a request, as Ollama has it: how long its model stays on the device once nothing is asked of it.

https://github.com/ollama/ollama/blob/main/docs/faq.md: seconds as a number, a duration (`10m`), 0 to leave after the
answer, any negative number to stay. It holds until the model leaves, or until another request says otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import msgspec

from coordinator.core.model import FOREVER
from coordinator.gateway.problem import bad_request
from coordinator.sizes import parse_duration

FIELD: Final = "keep_alive"
LONGEST_S: Final = 1e9
"""More is for ever."""
LONGEST_WORD: Final = 64

OnKept = Callable[[str, float | None], None]
"""(model, seconds); `FOREVER`: until its memory is needed; None: nothing is asked any more."""

_decode = msgspec.json.Decoder(float | str | None).decode


def read(raw: bytes | None) -> float | None:
    """Seconds, or `FOREVER`; None: the request says nothing. Raises Problem (400) for what is no duration."""
    if raw is None:
        return None
    try:
        return parse(_decode(raw))
    except (msgspec.DecodeError, UnicodeDecodeError, ValueError):
        raise bad_request("`keep_alive` is no duration: write seconds, or as 10m, 0 or -1", FIELD) from None


def parse(given: float | str | None) -> float | None:
    """As `read`, of the decoded value. Raises ValueError."""
    if given is None:
        return None
    if isinstance(given, str):
        if len(given) > LONGEST_WORD:
            raise ValueError("too long")
        word = given.strip()
        seconds = parse_duration(word.removeprefix("-"))
        given = -seconds if word.startswith("-") else seconds
    if not math.isfinite(given):
        raise ValueError("not finite")
    return FOREVER if given < 0 or given > LONGEST_S else given


class Keeps:
    """What the last request of each model that said so wants, while the model is there."""

    def __init__(self, on_kept: OnKept) -> None:
        self._on_kept = on_kept
        self._kept: dict[str, float] = {}

    def asked(self, model: str, seconds: float) -> None:
        if self._kept.get(model) != seconds:
            self._kept[model] = seconds
            self._on_kept(model, seconds)

    def left(self, model: str) -> None:
        """It is not on a device any more: what was asked for is over."""
        if self._kept.pop(model, None) is not None:
            self._on_kept(model, None)
