"""Two real engines of two ranks on the same two devices: layers mapped, and held twice."""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path

import aiohttp
import msgspec
import psutil
from rich.progress import Progress

from benchmarks import figures, nodes
from coordinator.core.model import Spec
from coordinator.demo import memcpy
from coordinator.store import connect, keys
from coordinator.store.codec import decode
from coordinator.supervise.layout import RunFile
from engine_patch.estimate import weights
from engine_patch.host_bus import RESERVED, WEIGHTS_AT
from native import smaps

MODEL = "mla"
LAYER = "fused_qkv_a_proj"
MAPPED, REPLICATED = "mapped", "replicated"
CAPACITY = "2560MiB"
CHUNK = 16 << 20
KV = "128MiB"
ARGS = {"dtype": "bfloat16", "max_model_len": 1024, "max_num_seqs": 8, "enforce_eager": True}
TOKENS = 16
AT_ONCE = (1, 4)
SAMPLE = 256 << 20
LIMIT_S = 600.0
PAUSE_S = 0.3
FLOAT = 2


class Found(msgspec.Struct):
    """Paired times by number of requests at once; bytes of shared layers on rank 0, and predicted."""

    ratios: dict[int, list[float]]
    own: int = 0
    predicted: int = 0
    replicated: int = 0
    dropped: int = 0


def make_model(folder: Path) -> Path:
    return nodes.make_model(folder / MODEL, "deepseek", "large")


async def measure(pairs: int, model: Path, progress: Progress) -> Found:
    found = Found({count: [] for count in AT_ONCE})
    with tempfile.TemporaryDirectory(prefix="vnpu-sharded-") as folder:
        starting = progress.add_task("starting two engines of two ranks", total=None)
        async with nodes.running(configuration(model), Path(folder)) as run:
            progress.remove_task(starting)
            found.replicated = weights(model, FLOAT, [LAYER]).shared
            found.predicted = -(-found.replicated // 2 // CHUNK) * CHUNK
            found.own = await _own_bytes(run)
            urls = nodes.urls(run)
            task = progress.add_task("pairs", total=pairs)
            for pair in range(pairs + 1):
                await _pair(urls, found, warm=pair > 0)
                progress.advance(task, pair > 0)
    return found


async def _pair(urls: dict[str, str], found: Found, *, warm: bool) -> None:
    before = await asyncio.to_thread(memcpy.seconds_per_byte, SAMPLE)
    taken = {count: [await _load(urls[name], name, count) for name in (MAPPED, REPLICATED)] for count in AT_ONCE}
    after = await asyncio.to_thread(memcpy.seconds_per_byte, SAMPLE)
    if not figures.steady(before, after):
        found.dropped += 1
    elif warm:
        for count, (mapped, replicated) in taken.items():
            found.ratios[count].append(mapped / replicated)


async def _load(url: str, model: str, count: int) -> float:
    """Seconds for `count` requests at once, with prompts never seen before."""
    await asyncio.sleep(PAUSE_S)  # the other engine's workers spin a little after their last step
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=LIMIT_S)) as http:

        async def ask(number: int) -> None:
            body = {"model": model, "prompt": f"{number} {time.time_ns()} says", "max_tokens": TOKENS}
            async with http.post(f"{url}/v1/completions", json={**body, "temperature": 0, "ignore_eos": True}) as reply:
                if reply.status != 200:
                    raise RuntimeError(f"{model} answered {reply.status}: {await reply.text()}")

        begun = time.perf_counter()
        async with asyncio.TaskGroup() as tasks:
            for number in range(count):
                tasks.create_task(ask(number))
        return time.perf_counter() - begun


async def _own_bytes(run: RunFile) -> int:
    """Resident bytes of rank 0's annex, where the shared layers lie that it owns."""
    store = connect(run.etcd)
    try:
        kv = await store.get(keys.spec(MAPPED))
    finally:
        await store.close()
    if kv is None:
        raise RuntimeError("the engine with mapped layers is not in etcd")
    family = psutil.Process(decode(Spec, kv.value).pid).children(recursive=True)
    rank = next(process for process in family if "VLLM::Worker_TP0" in " ".join(process.cmdline()))
    return smaps.resident(WEIGHTS_AT + RESERVED, RESERVED, rank.pid).resident


def configuration(model: Path) -> dict[str, object]:
    one = {"path": str(model), "kv_cache": KV, "engine_args": ARGS, "device": [0, 1], "pin": True}
    mapped = {**one, "sharded_linear": {"layers": [LAYER], "carrier": "mapped"}}
    return nodes.configuration({REPLICATED: one, MAPPED: mapped}, CAPACITY, CAPACITY)
