"""A YAML file as a checked document: environment expanded, every error names file, key path and remedy.

`Document` knows where in the file it stands; `decode` turns one section into a msgspec struct. Nothing here knows
vNPU's keys.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TypeVar, get_args

import msgspec
import yaml

from coordinator.errors import ConfigError

Struct = TypeVar("Struct", bound=msgspec.Struct)
Plain = None | bool | int | float | str | list["Plain"] | dict[str, "Plain"]
Hook = Callable[[type, object], object]

_ENV = re.compile(r"\$\{env\.([A-Za-z_][A-Za-z0-9_]*)\}")
_AT = re.compile(r" - at `\$?([^`]*)`$")


class _UniqueLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key written twice, where PyYAML silently takes the last."""


def _mapping(loader: _UniqueLoader, node: yaml.MappingNode) -> dict[object, object]:
    seen: set[object] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        if isinstance(key, (list, dict)) or key in seen:
            raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is written twice", key_node.start_mark)
        seen.add(key)
    loader.flatten_mapping(node)
    return loader.construct_mapping(node, deep=True)


_UniqueLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


class Document(msgspec.Struct, frozen=True):
    """A section of a configuration file: `file` as the user named it, `path` of keys down to here."""

    file: str
    value: object
    path: str = ""

    def error(self, message: str, remedy: str, key: str = "") -> ConfigError:
        where = ".".join(part for part in (self.path, key) if part)
        return ConfigError(message, remedy=remedy, file=self.file, key=where)

    def mapping(self) -> dict[str, object]:
        """This section's keys. Raises ConfigError where it is no mapping; an empty section is an empty mapping."""
        if self.value is None:
            return {}
        if not isinstance(self.value, dict):
            raise self.error(f"holds {_kind(self.value)} where a mapping belongs", "write `key: value` lines under it")
        for key in self.value:
            if not isinstance(key, str):
                raise self.error(f"the key {key!r} is {_kind(key)}", f'quote it: "{key}"')
        return self.value

    def child(self, key: str) -> Document:
        return Document(self.file, self.mapping().get(key), f"{self.path}.{key}" if self.path else key)

    def items(self) -> list[Document]:
        """The elements of a list. Raises ConfigError where it is none."""
        if not isinstance(self.value, list):
            raise self.error(f"holds {_kind(self.value)} where a list belongs", "write `- ` before each element")
        return [Document(self.file, value, f"{self.path}[{n}]") for n, value in enumerate(self.value)]

    def known(self, keys: Iterable[str], later: Mapping[str, str] = {}) -> None:
        """Refuses every key but `keys`; one of `later` is named as not supported yet, with the reason there."""
        keys = list(keys)
        for key in self.mapping():
            if key in later:
                raise self.error("is not supported yet", later[key], key)
            if key not in keys:
                raise self.error("unknown key", _suggest(key, keys), key)

    def decode(self, type_: type[Struct], hook: Hook, later: Mapping[str, str] = {}) -> Struct:
        """This section as `type_`. Raises ConfigError naming the key at fault."""
        fields = {field.encode_name: field for field in msgspec.structs.fields(type_)}
        self.known(fields, later)
        for name, field in fields.items():
            if field.required and name not in self.mapping():
                raise self.error("is missing", f"add `{name}:` here; docs/configuration.md says what it means", name)
        try:
            return msgspec.convert(self.mapping(), type_, strict=False, dec_hook=hook)
        except msgspec.ValidationError as error:
            raise self._converted(str(error), fields) from None

    def _converted(self, text: str, fields: Mapping[str, msgspec.structs.FieldInfo]) -> ConfigError:
        at = _AT.search(text)
        key = at[1].lstrip(".") if at else ""
        message = _AT.sub("", text)
        field = fields.get(key)
        choices = get_args(field.type) if field is not None else ()
        remedy = "docs/configuration.md says what belongs here"
        if choices and all(isinstance(choice, str) for choice in choices):
            remedy = "write " + " or ".join(choices)
        message, _, told = message.partition("; ")
        return self.error(message, told or remedy, key)


def read(path: Path, environ: Mapping[str, str]) -> Document:
    """The file at `path` with every `${env.X}` expanded. Raises ConfigError."""
    return expand(parse(path), environ)


def expand(document: Document, environ: Mapping[str, str]) -> Document:
    """With every `${env.X}` expanded. Raises ConfigError for a variable that is not set."""
    return Document(document.file, _expand(document, environ), document.path)


def parse(path: Path) -> Document:
    """The file at `path` as it stands there. Raises ConfigError."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(
            f"cannot be read: {reason}", remedy="name another file by --config FILE", file=str(path)
        ) from None
    try:
        value = yaml.load(text, Loader=_UniqueLoader)
    except yaml.YAMLError as error:
        raise ConfigError(_yaml_fault(error), remedy="mend the YAML there", file=str(path)) from None
    return Document(str(path), value)


def unset(document: Document, environ: Mapping[str, str]) -> list[ConfigError]:
    """One error for each place that names an environment variable which is not set."""
    value = document.value
    if isinstance(value, dict):
        path = f"{document.path}." if document.path else ""
        inside = [Document(document.file, item, f"{path}{key}") for key, item in value.items()]
        return [error for each in inside for error in unset(each, environ)]
    if isinstance(value, list):
        return [error for each in document.items() for error in unset(each, environ)]
    named = _ENV.findall(value) if isinstance(value, str) else []
    return [_unset(document, name) for name in named if name not in environ]


def _unset(document: Document, name: str) -> ConfigError:
    return document.error(f"the environment variable {name} is not set", f"export {name}=… first")


def _expand(document: Document, environ: Mapping[str, str]) -> object:
    """Expansion works on parsed strings, so that a variable's content can never become YAML."""
    value = document.value
    if isinstance(value, dict):
        return {
            key: _expand(Document(document.file, item, f"{document.path}.{key}".lstrip(".")), environ)
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [_expand(item, environ) for item in document.items()]
    if not isinstance(value, str):
        return value

    def variable(match: re.Match[str]) -> str:
        if match[1] not in environ:
            raise _unset(document, match[1])
        return environ[match[1]]

    return _ENV.sub(variable, value)


def _suggest(key: str, keys: list[str]) -> str:
    close = difflib.get_close_matches(key, keys, n=1, cutoff=0.6)
    return f"did you mean `{close[0]}`?" if close else f"known here: {', '.join(sorted(keys))}"


def _yaml_fault(error: yaml.YAMLError) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"line {error.problem_mark.line + 1}: {error.problem}"
    return " ".join(str(error).split())


def _kind(value: object) -> str:
    names = {dict: "a mapping", list: "a list", str: "text", bool: "true/false", int: "a number", float: "a number"}
    return "nothing" if value is None else names.get(type(value), type(value).__name__)
