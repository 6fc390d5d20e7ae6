"""A multipart form as a client sent it, taken apart and put together anew: audio comes this way.

What goes to the engine is written by us, part by part, under a boundary of ours: a form that two parsers read in two
ways cannot smuggle anything past this one. Only a part's name, file name and type survive of its headers.
"""

from __future__ import annotations

import asyncio
import re
import uuid
from collections.abc import AsyncIterator
from typing import Final

import msgspec
from aiohttp import BodyPartReader, MultipartReader, StreamReader
from aiohttp.base_protocol import BaseProtocol

from coordinator.gateway import keep
from coordinator.gateway.body import OURS, Body
from coordinator.gateway.problem import bad_request
from coordinator.http1.request import Request

MOST_PARTS: Final = 64
CHUNK: Final = 64 << 10
LONGEST_NAME: Final = 256
_DROPPED: Final = (*OURS, "vllm_xargs", "model", keep.FIELD)
"""Not passed on as they came: ours, and what is written anew or read here."""
_NAME: Final = re.compile(r"[A-Za-z0-9_.\[\]-]{1,64}")
_TYPE: Final = re.compile(r"[A-Za-z0-9.+-]{1,64}/[A-Za-z0-9.+-]{1,64}")
_UNSAFE: Final = re.compile(r'[\x00-\x1f\x7f"\\]')


class Part(msgspec.Struct, frozen=True):
    """One field. `filename` empty: it is text, not a file."""

    name: str
    content: bytes
    filename: str = ""
    type: str = ""


class Form(msgspec.Struct, frozen=True):
    """A parsed form: the model it names, its other fields, and how long it wants the model kept (`keep.read`)."""

    model: str
    parts: tuple[Part, ...]
    boundary: str
    keep_alive: float | None = None

    @property
    def content_type(self) -> str:
        return f"multipart/form-data; boundary={self.boundary}"

    def encode(self, model: str) -> bytes:
        """The form for an engine, which serves `model` under this name."""
        lines = []
        for part in (Part("model", model.encode()), *self.parts):
            lines += [f"--{self.boundary}\r\n{_headers(part)}\r\n\r\n".encode(), part.content, b"\r\n"]
        return b"".join([*lines, f"--{self.boundary}--\r\n".encode()])


async def read_form(request: Request, body: Body) -> Form:
    """All of a request's form, its bytes charged to `body`. Raises Problem: 400 for what is no form, names no model or
    an impossible `keep_alive`, or repeats a field that may be there once; 413 and 503 as `Body.read`."""
    if request.content_type != "multipart/form-data":
        raise bad_request("send this as multipart/form-data")
    content = _reader(await body.read(request.chunks()))
    parts: list[Part] = []
    try:
        async for reader in _parts(MultipartReader(request.headers, content)):
            if len(parts) == MOST_PARTS:
                raise bad_request(f"the form has more than {MOST_PARTS} fields")
            parts.append(await _part(reader))
    except ValueError as error:  # aiohttp's for every fault of a form
        raise bad_request(f"the body is not a form: {str(error)[:200]}") from None
    model = _word(parts, "model")
    if model is None:
        raise bad_request("the form names no model", "model")
    word = _word(parts, keep.FIELD)
    keep_alive = keep.read(None if word is None else msgspec.json.encode(word))
    kept = tuple(part for part in parts if part.name.partition("[")[0] not in _DROPPED)
    return Form(model, kept, uuid.uuid4().hex, keep_alive)


def _reader(data: bytes) -> StreamReader:
    """Of bytes that are all here."""
    loop = asyncio.get_running_loop()
    reader = StreamReader(BaseProtocol(loop), CHUNK, loop=loop)
    reader.feed_data(data)
    reader.feed_eof()
    return reader


def _word(parts: list[Part], name: str) -> str | None:
    """What a field of text says; None: it is not there. Raises Problem where it is a file, or there twice."""
    found = [part for part in parts if part.name == name]
    if len(found) > 1 or any(part.filename for part in found):
        raise bad_request(f"`{name}` is there twice, or is a file", name)
    return found[0].content.decode("utf-8", "replace") if found else None


async def _parts(form: MultipartReader) -> AsyncIterator[BodyPartReader]:
    while (part := await form.next()) is not None:
        if not isinstance(part, BodyPartReader):
            raise bad_request("a part of the form is a form itself")
        yield part


async def _part(reader: BodyPartReader) -> Part:
    if "Content-Encoding" in reader.headers or "Content-Transfer-Encoding" in reader.headers:
        raise bad_request("a part of the form is encoded")
    name, filename = reader.name or "", reader.filename or ""
    if not _NAME.fullmatch(name):
        raise bad_request("a part of the form has no name, or an impossible one")
    type_ = reader.headers.get("Content-Type", "").partition(";")[0].strip()
    content = b"".join([chunk async for chunk in _chunks(reader)])
    return Part(name, content, _UNSAFE.sub("_", filename)[:LONGEST_NAME], type_ if _TYPE.fullmatch(type_) else "")


async def _chunks(reader: BodyPartReader) -> AsyncIterator[bytes]:
    while chunk := await reader.read_chunk(CHUNK):
        yield chunk
        await asyncio.sleep(0)  # all of it is here: others have their turn


def _headers(part: Part) -> str:
    file = f'; filename="{part.filename}"' if part.filename else ""
    type_ = f"\r\nContent-Type: {part.type}" if part.type else ""
    return f'Content-Disposition: form-data; name="{part.name}"{file}{type_}'
