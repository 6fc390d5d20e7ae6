"""The OpenAPI 3.1 document of the operators' API, made from the table of operations and the types they answer with.

https://spec.openapis.org/oas/v3.1.0
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

import msgspec

from coordinator.admin import answers
from coordinator.admin.operations import OPERATIONS, Operation

Json = Mapping[str, object]
_REF = "#/components/schemas/{name}"
_ERRORS = {
    "400": "the request makes no sense; `param` says where",
    "401": "no key, or an unknown one",
    "403": "a foreign Host or Origin, or a key that only reads",
    "404": "there is no such model; the message lists what there is",
    "503": "etcd or the leader is away; Retry-After says when to try again",
}


def document() -> Json:
    """The whole document, as plain values."""
    types = [type_ for one in OPERATIONS for type_ in (one.answer, one.body) if type_ is not None]
    _, schemas = msgspec.json.schema_components([*types, answers.Refusal], ref_template=_REF, schema_hook=_any)
    paths: dict[str, dict[str, object]] = {}
    for one in OPERATIONS:
        paths.setdefault(one.path, {})[one.method.lower()] = _operation(one)
    return {
        "openapi": "3.1.0",
        "info": {"title": "vNPU admin API", "version": _version(), "description": _ABOUT},
        "security": [{"key": []}],
        "paths": paths,
        "components": {
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
            "schemas": schemas,
        },
    }


_ABOUT = """What operators see and do. Bytes are integers, times seconds, `at` is Unix time. Any coordinator answers;
orders are passed on to the leader. Without a configured key the API listens on loopback only and asks for none."""


def _any(type_: type) -> dict[str, object]:
    """A policy's options."""
    return {"description": "whatever that policy takes"}


def _operation(one: Operation) -> Json:
    described: dict[str, object] = {
        "operationId": f"{one.method.lower()}_{one.path.strip('/').translate(_PLAIN)}",
        "summary": one.about,
        "parameters": _parameters(one),
        "responses": {str(one.status): _answer(one), **{code: _error(about) for code, about in _ERRORS.items()}},
    }
    if one.body is not None:
        described["requestBody"] = {"required": True, "content": _json(one.body)}
    return described


_PLAIN = str.maketrans({"/": "_", "{": None, "}": None})


def _parameters(one: Operation) -> list[Json]:
    found: list[Json] = []
    if "{model}" in one.path:
        about = "a model's id; slashes as they are, or as %2F"
        found.append(
            {"name": "model", "in": "path", "required": True, "description": about, "schema": {"type": "string"}}
        )
    return found + [
        {"name": query.name, "in": "query", "description": query.about, "schema": {"type": query.type}}
        for query in one.query
    ]


def _answer(one: Operation) -> Json:
    if one.answer is None:
        return {"description": one.about, "content": {"text/event-stream": {"schema": {"type": "string"}}}}
    return {"description": one.about, "content": _json(one.answer)}


def _error(about: str) -> Json:
    return {"description": about, "content": _json(answers.Refusal)}


def _json(type_: type[msgspec.Struct]) -> Json:
    return {"application/json": {"schema": {"$ref": _REF.format(name=type_.__name__)}}}


def _version() -> str:
    try:
        return version("vnpu")
    except PackageNotFoundError:  # a checkout that is not installed
        return "0"
