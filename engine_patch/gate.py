"""`--middleware engine_patch.gate.Gate`: the engine's own gate, and the way the agent meets the engine client.

A pure ASGI middleware. Its lifespan scope carries the application whose state holds vLLM's engine client; requests for
inference are held while the model is not resident. Without etcd endpoints in the environment it passes everything
through.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from typing import Any, Protocol

import msgspec

from coordinator.errors import ConfigError
from engine_patch.door import Door, Shut
from engine_patch.hold import App, Hold, Message, Receive, Scope, Send
from engine_patch.settings import endpoints

log = logging.getLogger("vllm.vnpu.gate")

DEADLINE = b"x-vnpu-deadline"
"""Seconds that a request may still wait, set by the gateway."""

_OUTSIDE_V1 = frozenset(
    {
        "/pooling",
        "/classify",
        "/score",
        "/rerank",
        "/v2/rerank",
        "/v2/embed",
        "/invocations",
        "/generative_scoring",
        "/inference/v1/generate",
        "/cohere/v2/chat",
    }
)
_WITHOUT_MODEL = ("/render", "/derender", "/cancel", "/count_tokens")
_OURS = frozenset(
    {
        "/sleep",
        "/wake_up",
        "/release_kv_cache_memory",
        "/pause",
        "/resume",
        "/collective_rpc",
        "/start_weight_update",
        "/update_weights",
        "/v1/load_lora_adapter",
    }
)


class Keeper(Protocol):
    """What the gate needs of the agent."""

    max_wait: float

    def door(self) -> Door:
        """The door of this process; made on the first call, in the server's event loop."""
        ...

    def attach(self, state: Any) -> None:
        """The server is up; `state` is the application's, with vLLM's engine client."""
        ...

    def answered(self, seconds: float) -> None:
        """A request has got the first byte of its answer, so long after it came to the gate."""
        ...

    def stop(self) -> None:
        """Blocks until the agent has ended."""
        ...


def needs_model(method: str, path: str) -> bool:
    """Whether a request runs the model: held while the model is away."""
    if method != "POST" or path.endswith(_WITHOUT_MODEL):
        return False
    return path in _OUTSIDE_V1 or path.startswith("/v1/")


class Gate:
    """See the module."""

    def __init__(self, app: App, keeper: Keeper | None = None) -> None:
        """`keeper` is for tests: vLLM gives none, and the agent of this process is taken."""
        self._app = app
        self._keeper = keeper or _agent_of_this_process()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._keeper is None:
            await self._app(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._live(self._keeper, scope, receive, send)
        elif scope["type"] == "http" and scope["path"] in _OURS:
            message = f"vNPU decides about the memory of this engine: {scope['path']} is not available"
            await _refuse(send, 409, message, "managed_by_vnpu", "invalid_request_error")
        elif scope["type"] == "http" and needs_model(scope["method"], scope["path"]):
            await self._hold(self._keeper, scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _live(self, keeper: Keeper, scope: Scope, receive: Receive, send: Send) -> None:
        keeper.door()

        async def announcing(message: Message) -> None:
            await send(message)
            if message["type"] == "lifespan.startup.complete":
                keeper.attach(scope["app"].state)

        async def parting() -> Message:
            message = await receive()
            if message["type"] == "lifespan.shutdown":
                await asyncio.to_thread(keeper.stop)
            return message

        await self._app(scope, parting, announcing)

    async def _hold(self, keeper: Keeper, scope: Scope, receive: Receive, send: Send) -> None:
        begun = time.monotonic()
        door, hold, gone = keeper.door(), Hold(receive), None
        if not door.is_open:
            gone = asyncio.ensure_future(hold.gone())
        try:
            async with door.passage(_patience(scope, keeper.max_wait), gone) as let_in:
                if gone is not None:
                    await _ended(gone)
                if let_in:
                    await self._app(scope, hold.receive, _timed(send, keeper, begun))
        except Shut as shut:
            await _refuse(send, 503, str(shut), shut.code, "service_unavailable", shut.retry_after)
        finally:
            if gone is not None:
                await _ended(gone)
            hold.close()


def _timed(send: Send, keeper: Keeper, begun: float) -> Send:
    """Says once when the first byte of a good answer goes out."""
    good = False

    async def timed(message: Message) -> None:
        nonlocal good
        if message["type"] == "http.response.start":
            good = message["status"] < 400
        elif good and message.get("body"):
            good = False
            keeper.answered(time.monotonic() - begun)
        await send(message)

    return timed


async def _ended(task: asyncio.Future[None]) -> None:
    task.cancel()
    await asyncio.wait({task})


def _patience(scope: Scope, most: float) -> float:
    """Seconds this request may wait: what the gateway left of its deadline, never more than configured."""
    for name, value in scope["headers"]:
        if name == DEADLINE:
            with contextlib.suppress(ValueError):
                seconds = float(value)
                if math.isfinite(seconds):
                    return min(most, max(0.0, seconds))
    return most


async def _refuse(send: Send, status: int, message: str, code: str, kind: str, retry_after: int | None = None) -> None:
    body = msgspec.json.encode({"error": {"message": message, "type": kind, "param": None, "code": code}})
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if retry_after is not None:
        headers.append((b"retry-after", str(retry_after).encode()))
        headers.append((b"x-vnpu-gate", code.encode()))  # vLLM has not seen the request: the gateway may try again
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _agent_of_this_process() -> Keeper | None:
    """Raises ConfigError where vNPU is on but its plugins were not loaded."""
    if not endpoints():
        return None
    from engine_patch import start

    agent = start.agent_of_this_process()
    if agent is None:
        raise ConfigError(
            "the gate runs, but vNPU's platform plugin does not",
            remedy="where VLLM_PLUGINS is set it must name vnpu; the API server must be one process",
        )
    return agent
