"""Looks into a real vLLM engine, for tests only: a middleware that calls worker methods, and those methods.

`--middleware tests.helpers.vllm_probe.ProbeGate --worker-extension-cls tests.helpers.vllm_probe.Probe`
"""

from __future__ import annotations

import json
import logging
from threading import Event
from typing import Any

import msgspec
import psutil

from engine_patch.gate import Gate
from tests.helpers import memory

log = logging.getLogger("vllm.probe")

PREFIX = "/probe/"
SPOILT_LAYER_RAN = "the layer ran whose weights are not there"


class ProbeGate(Gate):
    """The product's gate, and `POST /probe/<method>` as a collective RPC beside it."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(PREFIX):
            await super().__call__(scope, receive, send)
            return
        client, method = scope["app"].state.engine_client, scope["path"].removeprefix(PREFIX)
        own = getattr(self, f"probe_{method}", None)
        answers = await client.collective_rpc(f"probe_{method}") if own is None else [await own(client)]
        body = json.dumps(answers).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def probe_pause(self, client: Any) -> None:
        """Nothing is scheduled until `probe_resume`; the prefix cache stays."""
        await client.engine_core.pause_scheduler_async("keep", False)

    async def probe_given(self, client: Any) -> int:
        """Requests that EngineCore was given and has not ended. It reads them before a later `probe_resume`."""
        return int(client.output_processor.get_num_unfinished_requests())

    async def probe_resume(self, client: Any) -> None:
        await client.engine_core.resume_scheduler_async()


class Probe:
    """Mixed into the worker."""

    _hands: Any
    _exchange: Any
    _sharing: Any
    model_runner: Any

    def probe_digest(self) -> str:
        return str(self._hands.content())

    def probe_memory(self) -> dict[str, int]:
        """Where the weights lie, in bytes: all parameters and buffers with storage, those of them in the arena, and
        what the arena holds altogether (packed weights of oneDNN have no tensor)."""
        region = self._hands.weights
        model = self.model_runner.model
        seen = {
            t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
            for t in (*model.parameters(), *model.buffers())
        }
        inside = sum(size for at, size in seen.items() if region.base <= at < region.base + region.arena.reserved)
        return {
            "base": region.base,
            "tensors": sum(seen.values()),
            "inside": inside,
            "live": region.arena.live_bytes,
            "spilled": region.arena.spilled_bytes,
        }

    def probe_stages(self) -> list[int]:
        """Bytes of the weights that come back in each stage."""
        return [len(pieces) * self._hands._pieces.unit for pieces in self._hands._pieces.stages]

    def probe_offer(self) -> Any:
        """What Netloader serves: identity and extents."""
        manifest = self._exchange._streaming._shelf.take(30).manifest
        return msgspec.to_builtins({"identity": manifest.identity, "extents": manifest.extents})

    def probe_sharing(self) -> dict[str, Any]:
        """Names of the shared layers, and bytes of this rank's weights, those of layers that it owns included."""
        series = getattr(self._sharing, "_series", {})
        return {"layers": sorted(series), "live": self._hands.weights.live_bytes, "windows": self._sharing.bytes}

    def probe_kept(self) -> dict[str, int]:
        """What must not grow on this rank: bytes of its weights, of the pages they lie in, of windows, of the process's
        own heap; open files."""
        return {
            "live": self._hands.weights.live_bytes,
            "pages": self._hands.weights.bytes,
            "windows": self._sharing.bytes,
            "files": psutil.Process().num_fds(),
            "heap": memory.heap(),
        }

    def probe_skip(self) -> None:
        """From now on a restore leaves out a piece of the last decoder layer, and says when that layer ran."""
        hands, layer = self._hands, self.model_runner.model.model.layers[-1]
        whole, spoilt = hands._entries, Event()

        def forgetful(still: frozenset[int]) -> list[list[tuple[int, int, int]]]:
            spoilt.set()
            stages = whole(still)
            last = [stage for stage in stages[:-1] if stage][-1]
            to, at, length = last[-1]
            last[-1] = (to, at, length - hands._pieces.unit)
            return stages

        hands._entries = forgetful
        layer.register_forward_hook(lambda *_: log.error(SPOILT_LAYER_RAN) if spoilt.is_set() else None)
