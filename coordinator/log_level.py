"""`VNPU_LOG_LEVEL`: how much a process says, above what the configuration says."""

from __future__ import annotations

from collections.abc import Mapping

from coordinator.errors import ConfigError

VARIABLE = "VNPU_LOG_LEVEL"
LEVELS = ("debug", "info", "warning", "error")


def log_level(environ: Mapping[str, str], default: str) -> str:
    """As `logging` names it. Raises ConfigError where the variable names none; empty counts as unset."""
    given = environ.get(VARIABLE) or default
    if given.lower() not in LEVELS:
        remedy = f"write {', '.join(LEVELS[:-1])} or {LEVELS[-1]}"
        raise ConfigError(f"{VARIABLE}: {given!r} is not a log level", remedy=remedy)
    return given.upper()
