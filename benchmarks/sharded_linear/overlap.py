"""A carrier that takes time but no core, as a device's own copy engine does."""

from __future__ import annotations

import time
import zlib

import torch

from benchmarks.figures import DRIFT
from engine_patch.sharded_linear import image
from engine_patch.sharded_linear.rolling import Rolling
from engine_patch.sharded_linear.series import Candidate, Series, plan
from engine_patch.sharded_linear.window import PREFETCH

LAYERS, WIDTH, ROWS = 12, 1024, 64
SHARES = (0.5, 1.0, 2.0)
"""Transfer of a layer ÷ its computing."""
DEADLINE_S = 30.0
EARLY_S = 200e-6
"""A sleep ends up to so much late (timer slack, prctl(2): 80 us on two shared cores), 4 % of a layer here; a device's
own copy engine does not. So the end of a wait is spun."""


class Link:
    """Transfers go one after the other, each `seconds` long. What it brings is in the buffer already, but for the
    stamp."""

    def __init__(self, series: Series) -> None:
        self.seconds = 0.0
        self._id = zlib.crc32(series.name.encode())
        self._sent = 0
        self._free_at = 0.0

    def send(self, place: torch.Tensor, owner: int) -> Transfer:
        self._free_at = max(self._free_at, time.perf_counter()) + self.seconds
        image.stamp(place, self._id, self._sent)
        self._sent += 1
        return Transfer(self._free_at)


class Transfer:
    def __init__(self, done_at: float) -> None:
        self._done_at = done_at

    def wait(self, timeout_s: float) -> bool:
        left = self._done_at - time.perf_counter() - EARLY_S
        if left > 0:
            time.sleep(min(left, timeout_s))
        while time.perf_counter() < self._done_at:
            pass
        return True


def series(group: int) -> Series:
    [one] = plan([Candidate(f"layers.{n}.o_proj", "f") for n in range(LAYERS)], ["o_proj"], group, PREFETCH)
    return one


def modules() -> list[torch.nn.Module]:
    return [torch.nn.Linear(WIDTH, WIDTH, bias=False).requires_grad_(False) for _ in range(LAYERS)]


def shared(one: Series, me: int, carrier: object) -> tuple[list[torch.nn.Module], Rolling]:
    made = modules()
    rolling = Rolling(one, me, carrier, DEADLINE_S)  # type: ignore[arg-type]
    for position, module in enumerate(made):
        rolling.adopt(position, module)
    rolling.open()
    return made, rolling


def seconds(layers: list[torch.nn.Module], x: torch.Tensor) -> float:
    """Of one pass."""
    begun = time.perf_counter()
    for layer in layers:
        x = layer(x)
    return time.perf_counter() - begun


def measure(pairs: int) -> tuple[dict[float, list[float]], int]:
    """Pass ÷ ideal by transfer share, and how many pairs were dropped because computing drifted."""
    torch.set_num_threads(1)
    one = series(2)
    link = Link(one)
    plain, (layers, rolling) = modules(), shared(one, 0, link)
    x = torch.randn(ROWS, WIDTH)
    found: dict[float, list[float]] = {share: [] for share in SHARES}
    dropped = 0
    rolling.fill()
    with torch.inference_mode():
        for _ in range(3):
            seconds(layers, x), seconds(plain, x)
        for _ in range(pairs):
            for share in SHARES:
                before = seconds(plain, x)
                link.seconds = share * before / LAYERS
                seconds(layers, x)  # what was under way of another length is used up
                took = seconds(layers, x)
                after = seconds(plain, x)
                if abs(after - before) > DRIFT * min(after, before):
                    dropped += 1
                    continue
                compute = (before + after) / 2
                found[share].append(took / max(compute, link.seconds * LAYERS))
    return found, dropped
