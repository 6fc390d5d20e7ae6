"""An engine's answer on its way to the client: streams chunk by chunk, everything else whole.

An answer that breaks off is never passed for a complete one: before anything was sent the client gets a retryable
error, in a stream an error event and a connection that ends without the end of its body.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

import msgspec

from coordinator.gateway.problem import Problem, engine_lost
from coordinator.gateway.reply import Reply
from coordinator.gateway.sse import LineRelay
from coordinator.gateway.surface import named_ends
from coordinator.http1.head import media_type
from coordinator.http1.upstream import BrokenOff, Upstream

log = logging.getLogger(__name__)

WHOLE_LIMIT = 16 << 20
"""An answer larger than this is passed on as it comes, not held back until it is complete."""
WORDS = 2000
_PASSED = ("Content-Type", "Retry-After", "metadata")
"""`metadata`: where vLLM says what raw bytes of embeddings are."""


class _Told(msgspec.Struct):
    message: str = ""


class _Refusal(msgspec.Struct):
    error: _Told = msgspec.field(default_factory=_Told)


async def relay(upstream: Upstream, reply: Reply, model: str, first: Callable[[], None]) -> None:
    """Answer with `upstream`; `first` is called when the engine's first words are here. Raises Problem when the engine
    broke before anything was sent, or refused a request whose client is told news."""
    headers = {name: upstream.headers[name] for name in _PASSED if name in upstream.headers}
    if media_type(headers) == "text/event-stream":
        await _events(upstream, reply, model, headers, first)
    else:
        await _whole(upstream, reply, model, headers)
        first()


async def _events(
    upstream: Upstream, reply: Reply, model: str, headers: Mapping[str, str], first: Callable[[], None]
) -> None:
    """What has come together goes on together; the head does not wait for the first words."""
    await reply.open(upstream.status, headers, events=True)
    lines = LineRelay(named_ends(reply.request.path))
    told = False

    def whole_lines(data: bytes) -> bytes:
        nonlocal told
        ready = lines.feed(data)
        if ready and not told:
            told = True
            first()
        return ready

    def pass_on(data: bytes) -> bool:
        ready = whole_lines(data)
        return reply.put(ready) if ready else True

    if not upstream.ready:
        reply.flush()
    try:
        ready = b""
        while not upstream.over:
            if not upstream.ready:
                await _handed_on(upstream, model, pass_on)
                await reply.drained()
                continue
            if (ready := whole_lines(upstream.here())) and not upstream.over:
                await reply.write(ready)
                ready = b""  # while it was written the end may have come
        rest = lines.finish()
        if not lines.complete:  # half a line before the error would make one event of both
            await reply.write(ready)
            raise engine_lost(model)
        await reply.write(ready + rest, last=True)
    except Problem as problem:
        await reply.fail(problem)


async def _whole(upstream: Upstream, reply: Reply, model: str, headers: Mapping[str, str]) -> None:
    parts: list[bytes] = []
    size = 0
    while chunk := await _read(upstream, model):
        parts.append(chunk)
        size += len(chunk)
        if size > WHOLE_LIMIT:
            await _large(upstream, reply, model, headers, b"".join(parts))
            return
    await reply.close()
    if reply.begun:
        raise _refusal(upstream.status, b"".join(parts))
    await reply.whole(upstream.status, headers, b"".join(parts))


async def _large(upstream: Upstream, reply: Reply, model: str, headers: Mapping[str, str], start: bytes) -> None:
    await reply.close()
    if reply.begun:
        raise _refusal(upstream.status, start)
    await reply.open(upstream.status, headers)
    await reply.write(start)
    try:
        while chunk := await _read(upstream, model):
            await reply.write(chunk)
    except Problem:
        reply.cut()


def _refusal(status: int, body: bytes) -> Problem:
    """What an engine said instead of a stream, in the engine's words."""
    try:
        words = msgspec.json.decode(body, type=_Refusal).error.message
    except (msgspec.MsgspecError, UnicodeDecodeError):
        words = ""
    message = words[:WORDS] or f"the engine answered {status} and no stream"
    return Problem(status if status >= 400 else 502, "engine_refused", message)


async def _read(upstream: Upstream, model: str) -> bytes:
    """The next bytes; empty at the end. Only the engine's side fails here: what the client does is another matter."""
    try:
        return await upstream.read()
    except BrokenOff as error:
        raise _lost(model, error) from error


async def _handed_on(upstream: Upstream, model: str, take: Callable[[bytes], bool]) -> None:
    try:
        await upstream.hand_on(take)
    except BrokenOff as error:
        raise _lost(model, error) from error


def _lost(model: str, error: BrokenOff) -> Problem:
    log.warning("engine of %s broke off its answer: %s", model, error)
    return engine_lost(model)
