"""`roles:` of a model: one name for clients, a prefill group and a decode group behind it.

Each group is an engine of its own, with its own device, memory and token: to the scheduler they are two models. The
decode group has the model's name; the prefill group's has a suffix that no other name can have, and no client can ask
for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from coordinator import config_replicas
from coordinator.document import Document
from coordinator.engine_args import plain
from coordinator.errors import ConfigError

PREFILL = "@prefill"
ROLES = ("prefill", "decode")
OWN = ("roles", "port", "aliases")
"""What the decode group has of the model and the prefill group has not."""
ARGS, TRANSFER = "engine_args", "kv_transfer_config"


def prefill_of(name: str) -> str:
    """The name of the prefill group of model `name`."""
    return name + PREFILL


def pairs(names: Iterable[str]) -> dict[str, str]:
    """Prefill groups by the models that they belong to."""
    known = set(names)
    return {name: prefill_of(name) for name in known if prefill_of(name) in known}


def is_paired(name: str, names: Iterable[str]) -> bool:
    """Whether this is one of the two groups of a model."""
    found = pairs(names)
    return name in found or name in found.values()


def expand(name: str, section: Document, keys: Iterable[str], later: Mapping[str, str]) -> dict[str, Document]:
    """The sections of the engines behind a model: its own, or one for each role, where a role's keys go before the
    model's.

    Raises:
        ConfigError: a role is missing or holds what belongs elsewhere.
    """
    if not section.child("roles").mapping():
        return {name: section}
    roles = section.child("roles")
    roles.known(ROLES)
    for role in ROLES:
        if role not in roles.mapping():
            raise roles.error("is missing", "a model has both roles, or none", role)
        roles.child(role).known(set(keys) - {"roles", "aliases", "replicas"}, later)
    whole = section.mapping()
    decode = _merged(whole, roles.child("decode"))
    prefill = _merged({key: value for key, value in whole.items() if key not in OWN}, roles.child("prefill"))
    return {name: decode, prefill_of(name): prefill}


def section_of(models: Document, name: str) -> Document:
    """Where the file speaks of this engine."""
    if (replica := config_replicas.section_of(models, name)) is not None:
        return replica
    section = models.child(name.removesuffix(PREFILL))
    if not isinstance(section.value, dict) or not section.value.get("roles"):
        return section
    return section.child("roles").child("prefill" if name.endswith(PREFILL) else "decode")


def _merged(whole: Mapping[str, object], role: Document) -> Document:
    own = role.mapping()
    both = (whole.get(ARGS), own.get(ARGS))
    args = {key: value for given in both if isinstance(given, dict) for key, value in given.items()}
    if any(plain(str(key)) == TRANSFER for key in args):
        raise _taken(role)
    return Document(role.file, {**whole, **own, ARGS: args}, role.path)


def _taken(role: Document) -> ConfigError:
    return role.error("is set by vNPU where a model has roles", "leave it out", f"{ARGS}.{TRANSFER}")
