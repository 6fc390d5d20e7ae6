"""An engine's answer on its way to the client: streams chunk by chunk, everything else whole.

An answer that breaks off is never passed for a complete one: before anything was sent the client gets a retryable
error, in a stream an error event and a connection that ends without the end of its body.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

import msgspec
from aiohttp import ClientError, ClientResponse, web

from coordinator.gateway.problem import Problem, engine_lost
from coordinator.gateway.reply import Reply
from coordinator.gateway.sse import LineRelay
from coordinator.gateway.surface import named_ends

log = logging.getLogger(__name__)

WHOLE_LIMIT = 16 << 20
"""An answer larger than this is passed on as it comes, not held back until it is complete."""
WORDS = 2000
_PASSED = ("Content-Type", "Retry-After", "metadata")
"""`metadata`: where vLLM says what raw bytes of embeddings are."""
_BROKEN = (ClientError, TimeoutError, OSError)


class _Told(msgspec.Struct):
    message: str = ""


class _Refusal(msgspec.Struct):
    error: _Told = msgspec.field(default_factory=_Told)


async def relay(upstream: ClientResponse, reply: Reply, model: str, first: Callable[[], None]) -> web.StreamResponse:
    """Answer with `upstream`; `first` is called when the engine's first words are here. Raises Problem when the engine
    broke before anything was sent, or refused a request whose client is told news."""
    headers = {name: upstream.headers[name] for name in _PASSED if name in upstream.headers}
    if upstream.content_type == "text/event-stream":
        return await _events(upstream, reply, model, headers, first)
    answer = await _whole(upstream, reply, model, headers)
    first()
    return answer


async def _events(
    upstream: ClientResponse, reply: Reply, model: str, headers: Mapping[str, str], first: Callable[[], None]
) -> web.StreamResponse:
    response = await reply.open(upstream.status, headers, events=True)
    lines = LineRelay(named_ends(reply.request.path))
    try:
        while chunk := await _read(upstream, model):
            if ready := lines.feed(chunk):
                first()
                first = _nothing
                await reply.write(ready)
        rest = lines.finish()
        if not lines.complete:  # half a line before the error would make one event of both
            raise engine_lost(model)
        if rest:
            await reply.write(rest)
    except Problem as problem:
        await reply.fail(problem)
    return response


def _nothing() -> None:
    """The first words are told once."""


async def _whole(upstream: ClientResponse, reply: Reply, model: str, headers: Mapping[str, str]) -> web.StreamResponse:
    parts: list[bytes] = []
    size = 0
    while chunk := await _read(upstream, model):
        parts.append(chunk)
        size += len(chunk)
        if size > WHOLE_LIMIT:
            return await _large(upstream, reply, model, headers, b"".join(parts))
    await reply.close()
    if reply.begun:
        raise _refusal(upstream.status, b"".join(parts))
    return web.Response(status=upstream.status, headers={**headers, **reply.own}, body=b"".join(parts))


async def _large(
    upstream: ClientResponse, reply: Reply, model: str, headers: Mapping[str, str], start: bytes
) -> web.StreamResponse:
    await reply.close()
    if reply.begun:
        raise _refusal(upstream.status, start)
    response = await reply.open(upstream.status, headers)
    await reply.write(start)
    try:
        while chunk := await _read(upstream, model):
            await reply.write(chunk)
    except Problem:
        reply.cut()
    return response


def _refusal(status: int, body: bytes) -> Problem:
    """What an engine said instead of a stream, in the engine's words."""
    try:
        words = msgspec.json.decode(body, type=_Refusal).error.message
    except (msgspec.MsgspecError, UnicodeDecodeError):
        words = ""
    message = words[:WORDS] or f"the engine answered {status} and no stream"
    return Problem(status if status >= 400 else 502, "engine_refused", message)


async def _read(upstream: ClientResponse, model: str) -> bytes:
    """The next bytes; empty at the end. Only the engine's side fails here: what the client does is another matter."""
    try:
        return await upstream.content.readany()
    except _BROKEN as error:
        log.warning("engine of %s broke off its answer: %r", model, error)
        raise engine_lost(model) from error
