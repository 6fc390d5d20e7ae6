"""Is this etcd fit for use? Its version decides, before anything relies on it.

Floors: 3.5.0-3.5.2 lose consistency when killed (etcd#13766); RBAC can be walked around below 3.5.33, 3.6.14 and 3.7.1
(CVE-2026-33413, CVE-2026-33343, CVE-2026-73499); the gateway's prefix `/v3` came with 3.4.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Mapping

import msgspec

from coordinator.errors import ConfigError, StoreUnavailable
from coordinator.store.etcd import EtcdStore

log = logging.getLogger(__name__)

OLDEST = (3, 4, 0)
UNSOUND = ((3, 5, 0), (3, 5, 2))
SAFE_PATCH: Mapping[tuple[int, int], int] = {(3, 5): 33, (3, 6): 14, (3, 7): 1}
"""The first patch of each minor whose access control holds; 3.4 has none, 3.8 and later have it from the start."""
FLOOR = "3.5.33, 3.6.14 or 3.7.1"


class Verdict(msgspec.Struct, frozen=True):
    """Each text is one sentence; what is refused must not be used."""

    refusals: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def judge(version: str, *, auth: bool, embedded: bool) -> Verdict:
    """`auth`: etcd's access control is relied upon. `embedded`: our own child on one node, for development."""
    numbers = _parse(version)
    if numbers is None or numbers < OLDEST:
        return Verdict(refusals=(f"etcd {version} is not supported: use {FLOOR} or later",))
    if UNSOUND[0] <= numbers <= UNSOUND[1] and not embedded:
        return Verdict(refusals=(f"etcd {version} can lose consistency when killed (etcd#13766): upgrade to {FLOOR}",))
    if _safe(numbers):
        return Verdict()
    if auth:
        return Verdict(refusals=(f"etcd {version}'s access control can be walked around: upgrade to {FLOOR}",))
    return Verdict(warnings=() if embedded else (f"etcd {version} has known security holes: upgrade to {FLOOR}",))


async def preflight(store: EtcdStore, *, embedded: bool = False) -> dict[str, str]:
    """Version by endpoint URL, of those that answer; warnings are logged.

    Raises `ConfigError` naming every member that must not be used, `StoreUnavailable` when none answers.
    """
    channel = store.channel
    answers = await asyncio.gather(*map(channel.version, channel.endpoints), return_exceptions=True)
    versions: dict[str, str] = {}
    for endpoint, answer in zip(channel.endpoints, answers, strict=True):
        if isinstance(answer, str):
            versions[endpoint.url] = answer
        elif isinstance(answer, StoreUnavailable):
            log.warning("etcd member %s does not answer: %s", endpoint.url, answer)
        else:
            raise answer
    if not versions:
        raise StoreUnavailable("no etcd endpoint answers", remedy="check VNPU_ETCD_ENDPOINTS and that etcd runs")
    _enforce({url: judge(v, auth=channel.authenticates, embedded=embedded) for url, v in versions.items()})
    return versions


def _enforce(verdicts: Mapping[str, Verdict]) -> None:
    for url, verdict in verdicts.items():
        for warning in verdict.warnings:
            log.warning("%s: %s", url, warning)
    refusals = [f"{url}: {refusal}" for url, verdict in verdicts.items() for refusal in verdict.refusals]
    if refusals:
        raise ConfigError("; ".join(refusals), remedy="or run `etcd: embedded` for development")


def _parse(version: str) -> tuple[int, int, int] | None:
    """`3.5.1` or `3.6.0-rc.1`, which counts as before 3.6.0's fixes anyway."""
    found = re.match(r"(\d+)\.(\d+)\.(\d+)", version)
    return (int(found[1]), int(found[2]), int(found[3])) if found else None


def _safe(numbers: tuple[int, int, int]) -> bool:
    minor = numbers[:2]
    return minor > max(SAFE_PATCH) or (minor in SAFE_PATCH and numbers[2] >= SAFE_PATCH[minor])
