"""How people write bytes and time: `2GiB`, `512M`, `1.5GB`, `5m`, `1h30m`, `500ms`; and how they are shown."""

from __future__ import annotations

import re

_UNITS = {
    "": 1,
    "b": 1,
    "k": 1 << 10,
    "m": 1 << 20,
    "g": 1 << 30,
    "t": 1 << 40,
    "kib": 1 << 10,
    "mib": 1 << 20,
    "gib": 1 << 30,
    "tib": 1 << 40,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", re.ASCII)
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)", re.ASCII)
_DURATION = re.compile(rf"(?:{_PART.pattern})+", re.ASCII)


def parse_size(text: str | int) -> int:
    """Bytes. `KiB MiB GiB TiB` and the short `K M G T` are powers of 1024, `KB MB GB TB` powers of 1000.

    Raises ValueError on anything else, also on a fraction of a byte and on a negative number."""
    match = _SIZE.fullmatch(str(text).strip())
    unit = _UNITS.get(match[2].lower()) if match else None
    if match is None or unit is None:
        raise ValueError(f"{text!r} is not a size; write bytes or a unit, as 64MiB or 2GiB")
    size = float(match[1]) * unit if "." in match[1] else int(match[1]) * unit
    if size != int(size):
        raise ValueError(f"{text!r} is not a whole number of bytes")
    return int(size)


def parse_duration(text: str | float) -> float:
    """Seconds. A bare number is seconds; units `ms s m h d` may follow one another (`1h30m`).

    Raises ValueError on anything else, also on a negative number."""
    written = str(text).strip()
    if re.fullmatch(r"\d+(?:\.\d+)?", written, re.ASCII):
        return float(written)
    if not _DURATION.fullmatch(written):
        raise ValueError(f"{text!r} is not a duration; write seconds or a unit, as 500ms, 30s, 5m or 1h30m")
    return sum(float(number) * _SECONDS[unit] for number, unit in _PART.findall(written))


def show_size(size: float) -> str:
    """Binary units, three digits at most: `2.0 GiB`, `64 MiB`, `512 B`."""
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1000:
            return f"{value:.0f} {unit}" if unit == "B" or abs(value) >= 10 else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def show_duration(seconds: float) -> str:
    """`340 ms`, `12.4 s`, `5m 02s`, `2h 05m`."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}m {rest:02d}s"
    return f"{minutes // 60}h {minutes % 60:02d}m"
