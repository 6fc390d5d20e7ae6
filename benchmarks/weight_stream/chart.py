"""Time against the number of starters, as one SVG picture. No library needed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

WIDTH, HEIGHT = 640, 400
LEFT, TOP, RIGHT, BOTTOM = 60, 30, 170, 50
MEASURED, QUEUE = "#2563eb", "#999"


def draw(times: Mapping[int, float]) -> str:
    """SVG text. `times`: by number of starters, seconds until the last has everything ÷ the time of one alone. The
    dashed line is what it would be if the source served one after the other."""
    most = max(times)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif"',
        ' font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        *_axes(most),
        _path({n: float(n) for n in times}, most, QUEUE, "4 3"),
        _path(times, most, MEASURED),
        *(f'<circle cx="{_x(n, most):.1f}" cy="{_y(t, most):.1f}" r="3" fill="{MEASURED}"/>' for n, t in times.items()),
        _text(_x(most, most) + 8, _y(times[most], most) + 4, f"measured: {times[most]:.2f}", colour=MEASURED),
        _text(_x(most, most) + 8, _y(most, most) + 4, "one after the other", colour=QUEUE),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _axes(most: int) -> Iterable[str]:
    yield _text(LEFT, TOP - 12, "time until the last starter has everything ÷ time of one alone")
    for n in range(most + 1):
        y = _y(n, most)
        yield f'<line x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}" stroke="#eee"/>'
        yield _text(LEFT - 8, y + 4, str(n), anchor="end")
        if n:
            yield _text(_x(n, most), HEIGHT - BOTTOM + 18, str(n), anchor="middle")
    yield _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 10, "starters", anchor="middle")


def _path(times: Mapping[int, float], most: int, colour: str, dash: str = "") -> str:
    points = " ".join(f"{_x(n, most):.1f},{_y(t, most):.1f}" for n, t in sorted(times.items()))
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    return f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"{dashed}/>'


def _x(number: float, most: int) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * (number - 1) / max(1, most - 1)


def _y(time: float, most: int) -> float:
    return HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * min(time, most) / most


def _text(x: float, y: float, text: str, *, anchor: str = "start", colour: str = "#111") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{text}</text>'
