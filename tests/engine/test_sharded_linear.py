"""A real tensor-parallel engine (a tiny DeepSeek-V2, whose MLA compressions every rank would hold whole), with layers
shared by each carrier, against the same engine without. One node, an engine at a time."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import pytest_asyncio

from coordinator.core.model import Order, Phase
from coordinator.embedded import find_binary
from tests.helpers.daemon import DaemonProcess
from tests.helpers.engine_file import made, marks
from tests.helpers.etcd import RealEtcd
from tests.helpers.lab import Lab
from tests.helpers.puppet import Puppet
from tests.helpers.vllm_engine import VllmEngine

pytestmark = marks(timeout_s=2400)

CAPACITY = 128 << 20
CHUNK = 2 << 20
KV = 16 << 20
LAYER = "fused_qkv_a_proj"
DEPTH = 4
BYTES = (512 + 512 + 64) * 128 * 4
"""Of one layer: what queries and KV are compressed to, by the hidden width, in float32."""
PROMPTS = ("def main():", "The daemon owns", "class Engine:\n    ", "import os", "while True:")
TOGETHER = tuple(f"{prompt} {'value ' * (7 * n % 45)}" for n, prompt in enumerate(PROMPTS * 3))
"""Fifteen requests where eight run at once and a step takes 128 tokens: prompts come in chunks, whole and beside
answers."""
WINDOW = 2 * (64 + BYTES)
"""Two ranks own every other layer, so of the four that are asked for ahead or in use two are the other's: two images of
a layer, each with its header."""
CYCLES = 6
HEAP = 4 << 20
"""Bytes by which a process's heap may differ; a layer left behind in each cycle would be as much."""
PROBES = (
    "--worker-extension-cls",
    "tests.helpers.vllm_probe.Probe",
    "--middleware",
    "tests.helpers.vllm_probe.ProbeGate",
)


class Ranks(Lab):
    """Two devices, a rank of the engine on each."""

    model: Path
    answers: list[list[int]]
    batched: list[list[int]]
    live: int
    """Bytes of the weights of a rank that shares nothing."""

    @asynccontextmanager
    async def engine(self, name: str, *, asynchronous: bool = False, **sharing: object) -> AsyncIterator[VllmEngine]:
        more = [*PROBES, "--tensor-parallel-size", "2", "--dtype", "float32"]
        more += ["--max-num-batched-tokens", "128"]
        if sharing:
            more += ["--additional-config", json.dumps({"sharded_linear": sharing})]
        environment = {"VNPU_DEVICE": "0,1", "VLLM_CPU_OMP_THREADS_BIND": "0|1"}
        if asynchronous:
            more += ["--async-scheduling"]
            environment["VNPU_ASYNC_RUNNER"] = "1"
        async with await VllmEngine.start(
            self.folder, self.etcd.url, name, self.model, node="local", kv=KV, more=more, environment=environment
        ) as engine:
            await self._started(engine)
            yield engine
        await self.gone(engine)

    async def _started(self, engine: VllmEngine) -> None:
        """Or it ended, and says why."""
        ready = asyncio.create_task(self._ready(engine))
        ended = asyncio.create_task(engine.ended())
        await asyncio.wait({ready, ended}, return_when=asyncio.FIRST_COMPLETED)
        ended.cancel()
        if not ready.done():
            ready.cancel()
            raise AssertionError(engine.log.read_text()[:20000])
        await ready

    async def _ready(self, engine: VllmEngine) -> None:
        await self.order(engine, Order.RESTORE)
        await self.spec(engine, lambda spec: spec.measured)

    async def charged(self, engine: VllmEngine) -> list[int]:
        """Bytes of weights that the daemon has given the engine, by device: nothing of the engine's counts them."""
        states = [await self.leader.closed(device) for device in self.daemon.ids]
        return [
            sum(owner.bytes.weights for owner in state.owners if owner.holder.engine == engine.engine)
            for state in states
        ]

    async def overwrite(self, fill: int) -> None:
        """Another owner takes every page of both devices and fills it."""
        other = await self.leader.register("filler", self.daemon.ids, size=CAPACITY)
        who = (self.daemon.socket, "filler", other.holder.nonce)
        async with await Puppet.start(*who, "agent") as agent, await Puppet.start(*who, "worker") as worker:
            granted = await self.leader.grant(other, Order.RESTORE, CAPACITY)
            for device in ("0", "1"):
                await agent.enter(device, granted.epoch, granted.revision)
                ids = await worker.map(device, CAPACITY // CHUNK, fill)
                await worker.unmap(device, ids)
                await agent.leave(device, granted.epoch, granted.revision)
            for device in self.daemon.ids:
                await self.leader.closed(device, granted)
        await self.store.revoke_lease(other.lease)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def lab(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Ranks]:
    folder = tmp_path_factory.mktemp("sharded")
    model = await made(folder / "model", "deepseek")
    etcd = RealEtcd(folder, binary=find_binary({}))
    await etcd.start()
    store = etcd.client()
    try:
        with DaemonProcess(folder, etcd.url, devices=[f"{i}:host:{CAPACITY}" for i in (0, 1)]) as daemon:
            await daemon.ready(store)
            one = Ranks(folder, etcd, daemon, store, patience=600)
            one.model = model
            await one.leader.elect()
            async with one.engine("plain") as engine:
                one.answers = [await engine.complete(prompt) for prompt in PROMPTS]
                one.batched = await engine.together(TOGETHER, 32, salt="first")
                assert await engine.together(TOGETHER, 32, salt="second") == one.batched, "not settled: base and base"
                one.live = (await engine.probe("sharing"))["live"]
                assert len({token for answer in one.answers for token in answer}) > 20
            yield one
    finally:
        await store.close()
        await etcd.stop()


@pytest.mark.parametrize("carrier", ["mapped", "broadcast"])
async def test_answers_are_the_same_and_survive_sleeping(lab: Ranks, carrier: str) -> None:
    async with lab.engine(carrier, layers=[LAYER], carrier=carrier) as engine:
        assert [await engine.complete(prompt) for prompt in PROMPTS] == lab.answers
        assert await engine.together(TOGETHER, 32, salt=carrier) == lab.batched
        shared = await engine.probe("sharing")
        assert [name.rpartition(".")[2] for name in shared["layers"]] == [LAYER] * DEPTH
        for rank in await engine.probes("sharing"):
            own = rank["live"] - (lab.live - DEPTH * BYTES)
            assert own == pytest.approx(DEPTH // 2 * BYTES, rel=0.02)
        windows = -(-WINDOW // CHUNK) * CHUNK if carrier == "broadcast" else 0
        pages = [rank["pages"] + windows for rank in await engine.probes("kept")]
        assert [rank["windows"] for rank in await engine.probes("kept")] == [windows] * 2
        assert await lab.charged(engine) == pages
        footprint = (await lab.spec(engine)).footprint.weights
        assert footprint == max(pages)
        for fill in (0xA5, 0xFF):
            offloaded = await lab.order(engine, Order.OFFLOAD)
            assert (offloaded.held.total, offloaded.d2h) == (0, 0)
            await lab.overwrite(fill)
            restored = await lab.order(engine, Order.RESTORE)
            assert restored.phase is Phase.RESIDENT, restored.error
            assert restored.held.weights == footprint
            assert await lab.charged(engine) == pages
            salt = f"after {fill}"
            assert [await engine.complete(prompt, salt=salt) for prompt in PROMPTS] == lab.answers
        assert await engine.probe("sharing") == shared
        await stays_as_it_is(lab, engine)


async def test_asynchronous_steps_change_no_token(lab: Ranks) -> None:
    """Two ranks, of which vLLM fetches the output of one, and layers that both must reach in step."""
    async with lab.engine("async", asynchronous=True, layers=[LAYER], carrier="broadcast") as engine:
        assert "steps are asynchronous" in engine.log.read_text()
        assert [await engine.complete(prompt) for prompt in PROMPTS] == lab.answers
        for salt in ("before", "after"):
            assert await engine.together(TOGETHER, 32, salt=salt) == lab.batched
            await lab.order(engine, Order.OFFLOAD)
            assert (await lab.order(engine, Order.RESTORE)).phase is Phase.RESIDENT


async def stays_as_it_is(lab: Ranks, engine: VllmEngine) -> None:
    """Over cycles of sleep, wake, and passes."""
    found = []
    for cycle in range(1 + CYCLES):
        await lab.order(engine, Order.OFFLOAD)
        await lab.order(engine, Order.RESTORE)
        assert await engine.complete(PROMPTS[0], salt=f"cycle {cycle}") == lab.answers[0]
        found.append(await engine.probes("kept"))
    for before, after in zip(found[0], found[-1], strict=True):
        assert after.pop("heap") - before.pop("heap") <= HEAP, found
        assert after == before
