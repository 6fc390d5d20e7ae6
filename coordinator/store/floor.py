"""Which etcd may be used: its version decides, before anything relies on it. Pure.

Floors: 3.5.0-3.5.2 lose consistency when killed (etcd#13766); RBAC can be walked around below 3.5.33, 3.6.14 and 3.7.1
(CVE-2026-33413, CVE-2026-33343, CVE-2026-73499); the gateway's prefix `/v3` came with 3.4.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Final

import msgspec

from coordinator.errors import ConfigError

VARIABLE: Final = "VNPU_ETCD_CHECK"
OLDEST: Final = (3, 4, 0)
UNSOUND: Final = ((3, 5, 0), (3, 5, 2))
SAFE_PATCH: Final[Mapping[tuple[int, int], int]] = {(3, 5): 33, (3, 6): 14, (3, 7): 1}
"""The first patch of each minor whose access control holds; 3.4 has none, 3.8 and later have it from the start."""
FLOOR: Final = "3.5.33, 3.6.14 or 3.7.1"


class Check(StrEnum):
    """How much is asked of an etcd. `development`: our own child on one node, whose data nobody misses. `off`: nothing
    is."""

    STRICT = "strict"
    DEVELOPMENT = "development"
    OFF = "off"


class Verdict(msgspec.Struct, frozen=True):
    """Each text is one sentence; what is refused must not be used."""

    refusals: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def check_of(environ: Mapping[str, str]) -> Check:
    """What VNPU_ETCD_CHECK says; `strict` where it says nothing. Raises ConfigError."""
    said = environ.get(VARIABLE) or Check.STRICT
    if said not in set(Check):
        raise ConfigError(f"{VARIABLE}={said!r} is no check", remedy=f"give one of {', '.join(Check)}")
    return Check(said)


def development(environ: Mapping[str, str]) -> dict[str, str]:
    """For processes beside an etcd of our own, whatever else their environment has: what the user has set holds."""
    return {VARIABLE: environ.get(VARIABLE) or Check.DEVELOPMENT.value}


def judge(version: str, *, auth: bool, check: Check = Check.STRICT) -> Verdict:
    """`auth`: etcd's access control is relied upon."""
    if check is Check.OFF:
        return Verdict()
    numbers, embedded = _parse(version), check is Check.DEVELOPMENT
    if numbers is None or numbers < OLDEST:
        return Verdict(refusals=(f"etcd {version} is not supported: use {FLOOR} or later",))
    if UNSOUND[0] <= numbers <= UNSOUND[1] and not embedded:
        return Verdict(refusals=(f"etcd {version} can lose consistency when killed (etcd#13766): upgrade to {FLOOR}",))
    if _safe(numbers):
        return Verdict()
    if auth:
        return Verdict(refusals=(f"etcd {version}'s access control can be walked around: upgrade to {FLOOR}",))
    return Verdict(warnings=() if embedded else (f"etcd {version} has known security holes: upgrade to {FLOOR}",))


def refusal(verdicts: Mapping[str, Verdict]) -> ConfigError | None:
    """What to raise about these members, by their URLs; None: all of them may be used."""
    refusals = [f"{url}: {each}" for url, verdict in verdicts.items() for each in verdict.refusals]
    remedy = f"or run `etcd: embedded` for development; {VARIABLE} says how much is asked"
    return ConfigError("; ".join(refusals), remedy=remedy) if refusals else None


def _parse(version: str) -> tuple[int, int, int] | None:
    """`3.5.1` or `3.6.0-rc.1`, which counts as before 3.6.0's fixes anyway."""
    found = re.match(r"(\d+)\.(\d+)\.(\d+)", version)
    return (int(found[1]), int(found[2]), int(found[3])) if found else None


def _safe(numbers: tuple[int, int, int]) -> bool:
    minor = numbers[:2]
    return minor > max(SAFE_PATCH) or (minor in SAFE_PATCH and numbers[2] >= SAFE_PATCH[minor])
