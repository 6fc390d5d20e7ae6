"""`vnpu-watch why MODEL [--at-revision R]`: the decisions that tell, each with the revision under which it took effect.

A decision is written in the transaction that gives the order, so its key's mod_revision is the order's fence (PROTOCOL
rule 1). The ring keeps the newest `DECISION_RING` of them, whatever etcd has compacted.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import msgspec
from rich.text import Text

from coordinator.core.model import Decision, Spec
from coordinator.core.why import Told, why
from coordinator.errors import ConfigError, VnpuError
from coordinator.picture import Picture


class Explained(Told, frozen=True):
    """A decision as people read it, and the etcd revision under which it took effect."""

    revision: int = 0


def explain(picture: Picture, model: str, at: int | None = None) -> list[Explained]:
    """The newest decisions about `model`, newest first; with `at` those that had taken effect at that revision. Raises
    ConfigError for a revision that is yet to come, VnpuError where nothing is known of `model`."""
    if at is not None and at > picture.revision:
        raise ConfigError(f"etcd has not come to revision {at}", remedy=f"name one up to {picture.revision}")
    engines = {id_ for id_, spec in picture.of(Spec).items() if spec.model == model}
    standing = {decision.n: (decision, revision) for decision, revision in _written(picture)}
    everything = [decision for decision, _ in standing.values()]
    if not engines and not why(model, engines, everything):
        models = sorted({spec.model for spec in picture.of(Spec).values()})
        raise VnpuError(f"no engine of {model} is known", remedy=f"known are: {', '.join(models) or 'none'}")
    then = [decision for decision, revision in standing.values() if at is None or revision <= at]
    return [
        Explained(**msgspec.structs.asdict(told), revision=standing[told.n][1]) for told in why(model, engines, then)
    ]


def sentences(told: list[Explained], model: str, at: int | None = None) -> Text:
    """For people: a line for what was decided, indented ones for why."""
    if not told:
        when = "yet" if at is None else f"by revision {at}, as far as decisions are kept"
        return Text(f"Nothing has been decided about {model} {when}.")
    return Text("\n").join(line for each in told for line in _lines(each))


def _lines(told: Explained) -> Iterator[Text]:
    day = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(told.at))
    about = f"decision {told.n}, revision {told.revision}, {day}"
    yield Text.assemble((told.what, "bold"), "  ", (about, "dim"))
    yield Text(f"  because {told.because}")
    yield from (Text(f"  looked at {line}") for line in told.looked_at)
    if told.shadow:
        yield Text(f"  shadow policy {told.shadow}")


def _written(picture: Picture) -> Iterator[tuple[Decision, int]]:
    for slot, decision in picture.of(Decision).items():
        yield decision, picture.written(Decision, slot)
