"""What one rank's worker answers to an RPC of the agent: JSON text, because vLLM's channel to the workers must never
see an exception (the answers of the other ranks would be left in their queues and mistaken for the next call's)."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from coordinator.core.model import Bytes, Step


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """`error`: the step failed and the engine cannot go on. `denied`: the daemon gave no pages; nothing was changed
    that `undo` cannot take back. `need`: what would be `held` if no other engine had these weights on the device. Bytes
    and digest are this rank's. `pending`: restore number `turn` goes on behind this answer; its end comes by
    `engine_patch.desk`."""

    rank: int
    pid: int
    error: str = ""
    denied: str = ""
    held: Bytes = Bytes()
    need: Bytes = Bytes()
    restored: int = 0
    d2h: int = 0
    kv_saved: int = 0
    digest: str = ""
    steps: tuple[Step, ...] = ()
    turn: int = 0
    pending: bool = False


encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Report).decode


def decode(texts: Sequence[str]) -> tuple[Report, ...]:
    """The ranks' reports, by rank. Raises `msgspec.DecodeError` for anything else."""
    return tuple(sorted((_decode(text) for text in texts), key=lambda report: report.rank))


def held(reports: Sequence[Report]) -> Bytes:
    """What a device must hold at most: the ledger has one footprint for all devices of a group."""
    return _most([report.held for report in reports])


def need(reports: Sequence[Report]) -> Bytes:
    """The same of what is needed where nobody else has the weights."""
    return _most([report.need for report in reports])


def _most(each: Sequence[Bytes]) -> Bytes:
    return Bytes(
        weights=max((one.weights for one in each), default=0),
        kv=max((one.kv for one in each), default=0),
        overhead=max((one.overhead for one in each), default=0),
    )


def steps(reports: Sequence[Report]) -> tuple[Step, ...]:
    """Steps of ranks that work side by side: the slowest rank's seconds, in the first rank's order."""
    slowest: dict[str, float] = {}
    for step in (step for report in reports for step in report.steps):
        slowest[step.name] = max(slowest.get(step.name, 0.0), step.seconds)
    return tuple(Step(name, seconds) for name, seconds in slowest.items())
