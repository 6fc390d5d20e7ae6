"""A comparison as one SVG picture: cost against the optimum, and how long requests waited. No library needed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from math import ceil, log10

from coordinator.simulate.engine import Job
from coordinator.simulate.report import Comparison

COLOURS = ("#2563eb", "#dc2626", "#059669", "#d97706", "#7c3aed", "#0891b2")
WIDTH, HEIGHT = 720, 560
LEFT, RIGHT = 130, 30
POINTS = 200
"""A curve is drawn through so many points at most."""


def draw(found: Comparison, jobs: Mapping[str, Sequence[Job]]) -> str:
    """SVG text: a bar a policy (restore time waited for, with the optimum as a line), and below, for each policy, the
    share of requests whose first token took longer than so many seconds (both axes logarithmic)."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif"',
        ' font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        *_bars(found, 40, 200),
        *_curves(jobs, 270, 500),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _text(x: float, y: float, text: str, *, anchor: str = "start", colour: str = "#111") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, colour: str = "#999", dash: str = "") -> str:
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"{dashed}/>'


def _bars(found: Comparison, top: float, bottom: float) -> Iterable[str]:
    most = max([found.optimum_s, *(outcome.cost_s for outcome in found.outcomes)]) or 1.0
    wide = (WIDTH - LEFT - RIGHT) / most
    high = (bottom - top) / max(1, len(found.outcomes))
    yield _text(LEFT, top - 16, "seconds of restores that requests waited for, and as a multiple of the optimum")
    for n, outcome in enumerate(found.outcomes):
        y, colour = top + n * high, COLOURS[n % len(COLOURS)]
        length = outcome.cost_s * wide
        yield f'<rect x="{LEFT}" y="{y + 3:.1f}" width="{length:.1f}" height="{high - 6:.1f}" fill="{colour}"/>'
        yield _text(LEFT - 8, y + high / 2 + 4, outcome.policy, anchor="end")
        label = f"{outcome.cost_s:.1f} s ({outcome.ratio:.2f})"
        yield _text(LEFT + length - 6, y + high / 2 + 4, label, anchor="end", colour="white")
    x = LEFT + found.optimum_s * wide
    yield _line(x, top - 6, x, bottom + 6, "#111", "4 3")
    yield _text(x + 4, bottom + 18, "optimum" if found.exact else "lower bound")


def _curves(jobs: Mapping[str, Sequence[Job]], top: float, bottom: float) -> Iterable[str]:
    waits = {name: sorted(max(j.ttft, 1e-3) for j in each if j.ttft is not None) for name, each in jobs.items()}
    count = max((len(each) for each in waits.values()), default=0)
    if count == 0:
        return
    low = min(each[0] for each in waits.values() if each)
    high = max(max(each[-1] for each in waits.values() if each), low * 10)
    yield _text(LEFT, top - 16, "share of requests whose first token took longer than … seconds")
    yield from _axes(low, high, count, top, bottom)
    for n, each in enumerate(waits.values()):
        step = max(1, len(each) // POINTS)
        points = [(wait, 1 - i / len(each)) for i, wait in enumerate(each) if i % step == 0 or i == len(each) - 1]
        path = " ".join(f"{_x(w, low, high):.1f},{_y(s, count, top, bottom):.1f}" for w, s in points)
        yield f'<polyline points="{path}" fill="none" stroke="{COLOURS[n % len(COLOURS)]}" stroke-width="2"/>'


def _axes(low: float, high: float, count: int, top: float, bottom: float) -> Iterable[str]:
    yield _line(LEFT, bottom, WIDTH - RIGHT, bottom)
    yield _line(LEFT, top, LEFT, bottom)
    for power in range(ceil(log10(low)), ceil(log10(high)) + 1):
        if low <= 10.0**power <= high:
            x = _x(10.0**power, low, high)
            yield _line(x, bottom, x, bottom + 5)
            yield _text(x, bottom + 20, f"{10.0**power:g} s", anchor="middle")
    for power in range(0, -ceil(log10(max(10, count))) - 1, -1):
        if 10.0**power * count >= 1:
            y = _y(10.0**power, count, top, bottom)
            yield _line(LEFT - 5, y, LEFT, y)
            yield _text(LEFT - 8, y + 4, f"{10.0**power:.4g}", anchor="end")


def _x(wait: float, low: float, high: float) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * (log10(wait) - log10(low)) / (log10(high) - log10(low))


def _y(share: float, count: int, top: float, bottom: float) -> float:
    least = -log10(max(10, count))
    return top + (bottom - top) * log10(max(share, 10.0**least)) / least
