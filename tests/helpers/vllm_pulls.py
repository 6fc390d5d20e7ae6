"""Real vLLM engines with our KV connector, and what is asked of them."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import msgspec

from coordinator.supervise.ports import free_port
from tests.helpers.vllm_engine import VllmEngine
from transfer.kv.ticket import Ticket, seal, unseal
from transfer.transports.trust import Trust

CONNECTOR = {
    "kv_connector": "VnpuConnector",
    "kv_connector_module_path": "engine_patch.kv_connector",
    "kv_role": "kv_both",
    "kv_load_failure_policy": "recompute",
}
TOKENS = 24


class Pulls:
    """Engines by name."""

    def __init__(self, engines: dict[str, VllmEngine], trust: Trust) -> None:
        self.engines = engines
        self.trust = trust

    async def prefill(self, engine: str, prompt: str) -> str:
        """The ticket."""
        answer = await self.engines[engine].ask(prompt, 1, {"vnpu": "offer"})
        ticket: str = answer["kv_transfer_params"]["vnpu"]
        return ticket

    async def decode(self, engine: str, prompt: str, ticket: str = "") -> list[int]:
        params = {"vnpu": ticket} if ticket else None
        answer = await self.engines[engine].ask(prompt, TOKENS, params)
        ids: list[int] = answer["choices"][0]["token_ids"]
        return ids

    def pulled(self, engine: str) -> list[tuple[int, int]]:
        """Of each pull: blocks that have come, and that were wanted; a line for each rank."""
        log = self.engines[engine].log.read_text()
        found = re.findall(r"kv pull of \S+: (\d+) of (\d+) blocks came", log)
        return [(int(came), int(wanted)) for came, wanted in found]

    def read(self, ticket: str) -> Ticket:
        return unseal(ticket, self.trust)

    def swapped(self, ticket: str) -> str:
        """The same ticket with its ranks the wrong way round."""
        found = self.read(ticket)
        return seal(msgspec.structs.replace(found, doors=found.doors[::-1]), self.trust)

    def astray(self, ticket: str) -> str:
        """The same ticket with doors at which nobody listens."""
        found = self.read(ticket)
        doors = tuple(msgspec.structs.replace(door, port=free_port()) for door in found.doors)
        return seal(msgspec.structs.replace(found, doors=doors), self.trust)


@asynccontextmanager
async def started(folder: Path, model: Path, wanted: Sequence[tuple[str, int, str]]) -> AsyncIterator[Pulls]:
    """`wanted`: name, ranks and transport of each; ready one after the other."""
    key = folder / "key"
    key.touch(0o600)
    key.write_text(secrets.token_hex(32))
    async with AsyncExitStack() as stack:
        engines = {}
        for name, ranks, transport in wanted:
            engines[name] = await stack.enter_async_context(await _start(folder, name, model, ranks, key, transport))
            await engines[name].ready()
        yield Pulls(engines, Trust(key.read_bytes()))


async def _start(folder: Path, name: str, model: Path, ranks: int, key: Path, transport: str) -> VllmEngine:
    binding = "0" if ranks == 1 else "0|1"
    connector = CONNECTOR | {"kv_connector_extra_config": {"transport": transport}}
    more = ["--dtype", "float32", "--kv-transfer-config", json.dumps(connector), "--tensor-parallel-size", str(ranks)]
    environment = {"VNPU_TRANSFER_KEY_FILE": str(key), "VLLM_CPU_OMP_THREADS_BIND": binding}
    return await VllmEngine.start(folder, "", name, model, node="none", kv=32 << 20, more=more, environment=environment)
