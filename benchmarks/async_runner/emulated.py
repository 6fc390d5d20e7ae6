"""The runner against a device that is there for nothing else (`device.py`): how much of what overlapping can give comes
of it."""

from __future__ import annotations

from pathlib import Path

import msgspec
from rich.progress import Progress

from benchmarks import figures
from benchmarks.async_runner.asking import Asking, Orders, calibrated
from benchmarks.async_runner.designs import EMULATED
from benchmarks.async_runner.device import Board
from benchmarks.async_runner.setting import BOARD, Load, engine

TOKENS = {1.0: 128, 0.5: 128, 0.2: 96, 0.1: 48, 0.05: 32}
"""Of one answer, by the host's part of a step ÷ the device's, about. Fewer where a step takes longer: what an answer
takes once (the request, its prompt) is a smaller share of a long step, so that it weighs less than a hundredth each."""
QUIET_S = 0.1
"""Five times as long as a worker of ours spins after a step (`engine_patch.spin`)."""
WARM = 4
"""Turns that are not counted: the first steps of an engine allocate."""


class Step(msgspec.Struct, frozen=True):
    """Seconds of one output token: the host's part alone, the device's alone, both of a synchronous runner, and of an
    asynchronous one."""

    host: float
    device: float
    sync: float
    async_: float

    @property
    def gain_over_ideal(self) -> float:
        """1 where the smaller of both parts is hidden whole."""
        ideal = (self.host + self.device) / max(self.host, self.device)
        return self.sync / self.async_ / ideal


class Emulated:
    """By share: of steady pairs."""

    def __init__(self) -> None:
        self.steps: dict[float, list[Step]] = {share: [] for share in TOKENS}
        self.dropped = 0

    async def measure(self, model: Path, folder: Path, pairs: int, progress: Progress) -> None:
        starting = progress.add_task("emulated device: starting two engines", total=None)
        folders = folder / "async", folder / "sync"
        async with engine(EMULATED[0], model, folders[0]) as ours, engine(EMULATED[1], model, folders[1]) as theirs:
            progress.remove_task(starting)
            turns = _Turns((ours, theirs), [Board(at / BOARD) for at in folders])
            task = progress.add_task("emulated device: pairs", total=pairs * len(TOKENS))
            orders = Orders()
            for _ in range(WARM):
                await turns.take(1.0, orders.next((0, 1)))
            for _ in range(pairs):
                order = orders.next((0, 1))
                for share, steps in self.steps.items():
                    step, steady = await turns.take(share, order)
                    progress.advance(task)
                    self.dropped += not steady
                    steps += [step] if steady else []

    def ratios(self) -> dict[str, figures.Ratio]:
        """The worst share's, and each one's; nothing where nothing was measured."""
        found = {
            f"gain_over_ideal_{share:g}": figures.ratio([step.gain_over_ideal for step in steps])
            for share, steps in self.steps.items()
            if steps
        }
        if not found:
            return {}
        return {"gain_over_ideal_min": min(found.values(), key=lambda one: one.median), **found}

    def values(self) -> dict[str, float]:
        """Milliseconds, medians."""
        host = sorted(step.host for steps in self.steps.values() for step in steps)
        return {"emulated_host_ms": 1e3 * host[len(host) // 2]} if host else {}


class _Turns:
    """Asynchronous and synchronous engine, and their devices."""

    def __init__(self, urls: tuple[str, str], boards: list[Board]) -> None:
        self._urls = urls
        self._boards = boards
        self._host = 0.0
        self._asking = Asking(QUIET_S)

    async def take(self, share: float, order: list[int]) -> tuple[Step, bool]:
        """The host alone, then both runners in this order; and whether the machine was steady."""
        before = await calibrated()
        load = Load("emulated", "5mb", 1, TOKENS[share])
        self._set(0.0)
        self._host = await self._asking.whole(self._urls[1], load)
        self._set(self._host / share)
        busy, steps = self._boards[0].done
        taken = {engine: await self._asking.whole(self._urls[engine], load) for engine in order}
        busy_then, steps_then = self._boards[0].done
        step = Step(self._host, (busy_then - busy) / (steps_then - steps), taken[1], taken[0])
        return step, figures.steady(before, await calibrated())

    def _set(self, step_s: float) -> None:
        for board in self._boards:
            board.step_s = step_s
