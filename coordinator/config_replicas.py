"""`replicas:` of a model: several engines that serve the same model, each on devices of its own.

To the scheduler they are engines of one model: any of them can answer, and each is woken and evicted by itself. The
first is named as the model is; the names of the others have a suffix that no model's name can have.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable

from coordinator.document import Document

KEY = "replicas"
MOST = 64
_SUFFIX = re.compile(r"@[0-9]+\Z")


def model_of(engine: str) -> str:
    """The name of the model that an engine of the configuration serves."""
    return _SUFFIX.sub("", engine)


def is_replicated(name: str, names: Container[str]) -> bool:
    """Whether this is one of several engines of a model; there is never one without a second."""
    return f"{model_of(name)}@2" in names


def models_of(engines: Iterable[str]) -> tuple[str, ...]:
    """The models of these engines, each once, in order."""
    return tuple(dict.fromkeys(model_of(engine) for engine in engines))


def expand(name: str, section: Document, own: Iterable[str]) -> dict[str, Document]:
    """The sections of the engines of a model with replicas, where a replica's keys go before the model's; `own` are
    those that it may have. Raises ConfigError for a list that makes no sense."""
    replicas = section.child(KEY).items()
    if not 2 <= len(replicas) <= MOST:
        raise section.error(f"{len(replicas)} engines", f"list 2 to {MOST}, or leave the key out", KEY)
    if section.child("roles").mapping():
        raise section.error("a model with roles has one engine for each", "leave it out", KEY)
    whole = {key: value for key, value in section.mapping().items() if key not in (KEY, "port")}
    found = {}
    for number, replica in enumerate(replicas, 1):
        replica.known(own)
        engine = name if number == 1 else f"{name}@{number}"
        found[engine] = Document(section.file, {**whole, **replica.mapping()}, replica.path)
    if "port" in section.mapping():
        raise section.error("there are several engines", f"give each its own, in {KEY}", "port")
    return found


def section_of(models: Document, engine: str) -> Document | None:
    """Where the file speaks of this engine; None: its model has no replicas."""
    section = models.child(model_of(engine))
    if not isinstance(section.value, dict) or not section.value.get(KEY):
        return None
    number = engine.rpartition("@")[2] if _SUFFIX.search(engine) else "1"
    return section.child(KEY).items()[int(number) - 1]
