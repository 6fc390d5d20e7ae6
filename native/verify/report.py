"""What was found, as one page of Markdown that a user can paste. PURE."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

GIB = float(1 << 30)


@dataclass(frozen=True)
class Section:
    """One part of the report. `rows`: name and value, in order. `failure`: why it did not end well, else empty."""

    title: str
    rows: tuple[tuple[str, str], ...] = ()
    failure: str = ""
    lines: tuple[str, ...] = field(default=())

    @property
    def verdict(self) -> str:
        return "FAILED" if self.failure else "ok"


def rate(size: int, seconds: float) -> str:
    """Bytes and seconds as a rate."""
    return f"{size / max(seconds, 1e-9) / 1e9:.2f} GB/s"


def per_gib(size: int, seconds: float) -> str:
    """Bytes and seconds as milliseconds a GiB."""
    return f"{seconds * 1e3 * GIB / size:.3f} ms a GiB"


def failed(sections: Sequence[Section]) -> list[str]:
    """Titles of the sections that did not end well."""
    return [section.title for section in sections if section.failure]


def page(driver: str, when: str, sections: Sequence[Section]) -> str:
    """The report."""
    bad = failed(sections)
    verdict = f"FAILED: {', '.join(bad)}" if bad else "all of it went well"
    parts = [f"# vNPU on {driver}, {when}\n\n**Verdict:** {verdict}.\n"]
    parts += [_section(section) for section in sections]
    return "\n".join(parts)


def _section(section: Section) -> str:
    rows = "".join(f"| {name} | {value} |\n" for name, value in section.rows)
    table = f"\n| | |\n|---|---|\n{rows}" if rows else ""
    failure = f"\n**{section.failure}**\n" if section.failure else ""
    text = "\n```\n" + "\n".join(section.lines) + "\n```\n" if section.lines else ""
    return f"## {section.title}: {section.verdict}\n{failure}{table}{text}"
