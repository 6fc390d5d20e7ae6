"""Every fault of a `vnpu.yaml` at once, where `config.load` stops at the first.

A section is decoded again and again: what was at fault is noted, taken out, and where the section needs it, replaced by
a harmless stand-in. Only a file whose sections are all sound is checked across sections and against the disk, so that
no fault is named that merely follows from another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import msgspec

from coordinator import config, document
from coordinator import config_checks as checks
from coordinator.config import Config, Device, Policy, Size
from coordinator.document import Document
from coordinator.errors import ConfigError
from coordinator.hub import located

SECTIONS: Mapping[str, type[msgspec.Struct]] = {
    "defaults": config.Defaults,
    "gateway": config.Gateway,
    "admin": config.Admin,
    "log": config.Log,
    "policy": Policy,
}
LOOSE = ("etcd", "node", "host_ram")
"""Keys of the top level that are no sections."""
STAND_INS: Mapping[str, object] = {"id": "x", "capacity": 1, "path": ".", "kv_cache": 1, "device": "x"}
"""For keys that a section must have."""
Attempt = Callable[[Document], object]


def faults(path: Path, environ: Mapping[str, str]) -> list[ConfigError]:
    """All that is wrong with the file; each names file, key and remedy. Empty: `config.load` takes it."""
    try:
        raw = document.parse(path)
        if missing := document.unset(raw, environ):
            return missing
        root = document.expand(raw, environ)
        found = list(_in_sections(root, partial(located, folder=path.parent, environ=environ)))
        return found or _across(root, config.decoded(root, environ, path.parent))
    except ConfigError as error:  # of the file as a whole
        return [error]


def _across(root: Document, decoded: Config) -> list[ConfigError]:
    """Of sections that are sound each by itself."""
    found: dict[str, ConfigError] = {}
    for look in checks.looks(root, decoded):
        try:
            look()
        except ConfigError as error:
            found.setdefault(str(error), error)
    return list(found.values())


def _in_sections(root: Document, locate: Callable[[str], str]) -> Iterator[ConfigError]:
    yield from _mended(root, lambda whole: whole.known(Config.__struct_fields__, config.LATER[""]))[1]
    loose = {key: value for key, value in root.mapping().items() if key in LOOSE}
    yield from _mended(Document(root.file, loose), _loose)[1]
    defaults: Mapping[str, object] = {}
    for name in SECTIONS:
        sound, found = _mended(root.child(name), partial(_section, name))
        yield from found
        if name == "defaults":
            defaults = sound
    devices, found = _devices(root)
    yield from found
    yield from _models(root, defaults, devices, locate)


def _loose(top: Document) -> object:
    return Document(top.file, {**top.mapping(), "devices": [], "models": {}}).decode(Config, config.hook)


def _section(name: str, section: Document) -> None:
    decoded = section.decode(SECTIONS[name], config.hook, config.LATER[name])
    if isinstance(decoded, Policy):
        config.check_options(section, decoded)


def _devices(root: Document) -> tuple[list[Device], list[ConfigError]]:
    """With a stand-in for each that is at fault."""
    try:
        sections = config.device_sections(root)
    except ConfigError as error:
        return [], [error]
    found: list[ConfigError] = []
    for section in sections:
        found += _mended(section, lambda one: one.decode(Device, config.hook, config.LATER["devices"]))[1]
    return [Device(str(number), Size(1)) for number, _ in enumerate(sections)], found


def _models(
    root: Document, defaults: Mapping[str, object], devices: list[Device], locate: Callable[[str], str]
) -> Iterator[ConfigError]:
    """`devices`: as many as there are; which ones is looked at later."""
    try:
        models = config.named_models(root)
    except ConfigError as error:
        yield error
        return
    for name, whole in models.items():
        try:
            engines = config.engine_sections(name, whole)
        except ConfigError as error:
            yield error
            continue
        told: set[tuple[str, str]] = set()
        for section in engines.values():
            found = _mended(section, lambda one: config.model_of(one, defaults, devices, locate))[1]
            below = {(error.key.removeprefix(section.path + "."), error.fault): error for error in found}
            yield from (error for known, error in below.items() if known not in told)
            told |= {known for known in below if _top(known[0], "", [*whole.mapping()])}  # both roles have it from here


def _mended(section: Document, attempt: Attempt) -> tuple[dict[str, object], list[ConfigError]]:
    """The section without what was at fault, and the faults."""
    try:
        rest = dict(section.mapping())
    except ConfigError as error:
        return {}, [error]
    found: list[ConfigError] = []
    taken: set[str] = set()
    while True:
        try:
            attempt(Document(section.file, rest, section.path))
            return rest, found
        except ConfigError as error:
            key = _top(error.key, section.path, [*rest, *STAND_INS])
            if key not in taken:
                found.append(error)
            elif key in rest or key not in STAND_INS:  # the stand-in does not help either
                return rest, found
            if not key:
                return rest, found
            taken.add(key)
            if rest.pop(key, None) is None and key in STAND_INS:
                rest[key] = STAND_INS[key]


def _top(key: str, path: str, known: list[str]) -> str:
    """The section's own key that `key`, a path from the file's root, goes through; names may hold dots. Empty: none."""
    below = key[len(path) + 1 :] if path and key.startswith(path + ".") else key if not path else ""
    through = [name for name in known if below == name or below.startswith((f"{name}.", f"{name}["))]
    return max(through, key=len, default="")
