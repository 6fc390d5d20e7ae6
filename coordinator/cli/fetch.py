"""`vnpu fetch`: models that the configuration names by the hub's ids; `vnpu up` begins with those that are not here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from coordinator import config as configuration
from coordinator import document, hub
from coordinator.document import Document
from coordinator.errors import ConfigError
from coordinator.hub import HubError, HubId
from coordinator.sizes import show_size
from coordinator.weights import weight_bytes


def fetch(file: Path, environ: Mapping[str, str], console: Console) -> int:
    """All of them; what is here is asked after once more, and what has changed at the hub is fetched. Returns 0. Raises
    ConfigError, naming the key."""
    wanted = named(file, environ)
    if not wanted:
        console.print(f"{file} names no model by an id of the hub", highlight=False, markup=False)
    for id_, section in wanted.items():
        _get(id_, section, environ, console)
    return 0


def bring(file: Path, environ: Mapping[str, str], console: Console) -> None:
    """What is not here. A file that is at fault is left to who loads it. Raises ConfigError, naming the key."""
    try:
        wanted = named(file, environ)
    except ConfigError:
        return
    for id_, section in wanted.items():
        if hub.snapshot(id_, environ) is None:
            _get(id_, section, environ, console)


def named(file: Path, environ: Mapping[str, str]) -> dict[HubId, Document]:
    """Ids of the hub that the file names, each with the section that names it first. Raises ConfigError."""
    found: dict[HubId, Document] = {}
    for model, whole in configuration.named_models(document.read(file, environ)).items():
        for section in configuration.engine_sections(model, whole).values():
            path = section.mapping().get("path")
            if isinstance(path, str) and not (file.parent / path).exists() and (id_ := hub.hub_id(path)) is not None:
                found.setdefault(id_, section)
    return found


def _get(id_: HubId, section: Document, environ: Mapping[str, str], console: Console) -> None:
    where, into = hub.shown(hub.site(environ)), hub.cache(environ)
    told = f"{section.path}: fetching {escape(str(id_))} from {where} into {into}"
    console.print(told, highlight=False, soft_wrap=True)
    try:
        size = show_size(weight_bytes(hub.fetch(id_, environ)))
    except HubError as error:
        raise section.error(error.fault, error.remedy, "path") from None
    console.print(f"{section.path}: {escape(str(id_))} is here, {size} of weights", highlight=False, soft_wrap=True)
