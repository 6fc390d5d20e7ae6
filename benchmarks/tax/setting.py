"""The two engines that `tax` compares: one under vNPU, one of plain vLLM, equal in everything else."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import msgspec

from benchmarks import nodes
from coordinator.demo.scenario import ENGINE_ARGS
from coordinator.supervise.engine_command import GATE, THREADS, bindings

MODEL = "medium"
KV = 64 << 20
CAPACITY = "1GiB"
READY_S = 600.0
POLL_S = 0.5


def configuration(models: Path) -> dict[str, object]:
    model = {"path": str((models / MODEL).absolute()), "kv_cache": KV, "engine_args": dict(ENGINE_ARGS)}
    return nodes.configuration({MODEL: model}, CAPACITY, pin=True)


@contextlib.asynccontextmanager
async def resident_engine(models: Path, run_dir: Path) -> AsyncIterator[str]:
    """URL of the engine that is a member of a node; its own port, not the gateway's."""
    async with nodes.running(configuration(models), run_dir) as found:
        yield nodes.urls(found)[MODEL]


@contextlib.asynccontextmanager
async def plain_engine(command: list[str], run_dir: Path) -> AsyncIterator[str]:
    """URL of the same server, started by `command` without vNPU, computing on the same cores."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("VNPU_", "ETCD_"))}
    environ |= {THREADS: bindings([1], sorted(os.sched_getaffinity(0)))[0], "HF_HUB_OFFLINE": "1"}
    with (run_dir / "plain.log").open("wb") as log:
        child = await asyncio.create_subprocess_exec(*command, env=environ, cwd=run_dir, stdout=log, stderr=log)
    try:
        url = f"http://127.0.0.1:{command[command.index('--port') + 1]}"
        await _up(url, child)
        yield url
    finally:
        with contextlib.suppress(ProcessLookupError):
            child.terminate()
        await child.wait()


def plain_command(argv: tuple[str, ...], port: int) -> list[str]:
    """vNPU's command line for the engine without vNPU's gate, on another port."""
    words = list(argv)
    at = words.index("--middleware")
    if words[at + 1] != GATE:
        raise ValueError("the engine's command line has no gate")
    del words[at : at + 2]
    words[words.index("--port") + 1] = str(port)
    return words


async def _up(url: str, child: asyncio.subprocess.Process) -> None:
    async with asyncio.timeout(READY_S), aiohttp.ClientSession() as http:
        while child.returncode is None:
            with contextlib.suppress(aiohttp.ClientError):
                async with http.get(f"{url}/health") as reply:
                    if reply.status == 200:
                        return
            await asyncio.sleep(POLL_S)
    raise RuntimeError(f"plain vLLM ended with status {child.returncode}: see plain.log")


class Load(msgspec.Struct, frozen=True):
    """So many requests at once, of about `words` words each, for `tokens` tokens each."""

    name: str
    requests: int
    words: int
    tokens: int


LOADS = (Load("decode_c1", 1, 8, 48), Load("decode_c4", 4, 8, 48), Load("prefill", 1, 200, 1))
