"""An engine's answer on its way to the client: streams chunk by chunk, everything else whole.

An answer that breaks off is never passed for a complete one: before anything was sent the client gets a retryable
error, in a stream an error event and a connection that ends without the end of its body.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping

from aiohttp import ClientError, ClientResponse, web

from coordinator.gateway.problem import Problem, engine_lost
from coordinator.gateway.sse import LineRelay, error_event
from coordinator.gateway.surface import named_ends

log = logging.getLogger(__name__)

WHOLE_LIMIT = 16 << 20
"""An answer larger than this is passed on as it comes, not held back until it is complete."""
STALLED_S = 300.0
_PASSED = ("Content-Type", "Retry-After", "metadata")
"""`metadata`: where vLLM says what raw bytes of embeddings are."""
_BROKEN = (ClientError, TimeoutError, OSError)


async def relay(
    upstream: ClientResponse, request: web.Request, model: str, own: Mapping[str, str], first: Callable[[], None]
) -> web.StreamResponse:
    """Answer `request` with `upstream`, `own` headers added; `first` is called when the engine's first words are here.
    Raises Problem when the engine broke before anything was sent."""
    headers = {name: upstream.headers[name] for name in _PASSED if name in upstream.headers} | dict(own)
    if upstream.content_type == "text/event-stream":
        return await _events(upstream, request, model, headers, first)
    answer = await _whole(upstream, request, model, headers)
    first()
    return answer


async def _events(
    upstream: ClientResponse,
    request: web.Request,
    model: str,
    headers: Mapping[str, str],
    first: Callable[[], None],
) -> web.StreamResponse:
    response = web.StreamResponse(status=upstream.status, headers=headers)
    response.headers["Cache-Control"] = "no-cache"
    response.headers["X-Accel-Buffering"] = "no"
    await response.prepare(request)
    ends = named_ends(request.path)
    lines = LineRelay(ends)
    try:
        while chunk := await _read(upstream, model):
            if ready := lines.feed(chunk):
                first()
                first = _nothing
                await _write(response, request, ready)
        rest = lines.finish()
        if not lines.complete:  # half a line before the error would make one event of both
            raise engine_lost(model)
        if rest:
            await _write(response, request, rest)
    except Problem as problem:
        await _write(response, request, error_event(problem, named=bool(ends)))
        _cut(request)
    return response


def _nothing() -> None:
    """The first words are told once."""


async def _whole(
    upstream: ClientResponse, request: web.Request, model: str, headers: Mapping[str, str]
) -> web.StreamResponse:
    parts: list[bytes] = []
    size = 0
    while chunk := await _read(upstream, model):
        parts.append(chunk)
        size += len(chunk)
        if size > WHOLE_LIMIT:
            return await _large(upstream, request, model, headers, b"".join(parts))
    return web.Response(status=upstream.status, headers=headers, body=b"".join(parts))


async def _large(
    upstream: ClientResponse, request: web.Request, model: str, headers: Mapping[str, str], start: bytes
) -> web.StreamResponse:
    response = web.StreamResponse(status=upstream.status, headers=headers)
    await response.prepare(request)
    await _write(response, request, start)
    try:
        while chunk := await _read(upstream, model):
            await _write(response, request, chunk)
    except Problem:
        _cut(request)
    return response


async def _read(upstream: ClientResponse, model: str) -> bytes:
    """The next bytes; empty at the end. Only the engine's side fails here: what the client does is another matter."""
    try:
        return await upstream.content.readany()
    except _BROKEN as error:
        log.warning("engine of %s broke off its answer: %r", model, error)
        raise engine_lost(model) from error


async def _write(response: web.StreamResponse, request: web.Request, data: bytes) -> None:
    """Raises ConnectionResetError where the client has read nothing for `STALLED_S`: it must not hold an engine."""
    try:
        async with asyncio.timeout(STALLED_S):
            await response.write(data)
    except TimeoutError:
        if request.transport is not None:
            request.transport.abort()
        raise ConnectionResetError(f"the client has read nothing for {STALLED_S:g} s") from None


def _cut(request: web.Request) -> None:
    """Close after what is written is out, without the end of the body: no client can take it for complete."""
    if request.transport is not None:
        request.transport.close()
