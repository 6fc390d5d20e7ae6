"""One real vLLM engine on one device, shared by all tests of this module, in this order: the last one breaks it. Two
more are started on another node in turn, and take their weights from it or fail to."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio

from coordinator.core.model import Order, Phase, Seed
from coordinator.embedded import find_binary
from coordinator.store import keys
from coordinator.store.base import Delete, Put
from coordinator.store.codec import decode, encode
from coordinator.store.follow import follow
from coordinator.weights import weight_bytes
from engine_patch.host_bus import RESERVED
from tests.helpers.daemon import DaemonProcess
from tests.helpers.engine_file import made
from tests.helpers.etcd import RealEtcd
from tests.helpers.eventually import eventually
from tests.helpers.lab import Lab
from tests.helpers.processes import alive
from tests.helpers.puppet import Puppet
from tests.helpers.vllm_engine import PATIENCE_S, VllmEngine, resident_bytes
from tests.helpers.vllm_probe import SPOILT_LAYER_RAN
from tests.helpers.weights import LOCAL, Rank, dialler
from transfer.netloader import wire
from transfer.netloader.client import Client
from transfer.netloader.identity import Identity
from transfer.netloader.manifest import Extent, manifest
from transfer.netloader.plan import Peer
from transfer.netloader.server import Server
from transfer.netloader.shelf import Shelf
from transfer.netloader.source import Source, block_sums
from transfer.transports.listener import Listener
from transfer.transports.trust import KEY_FILE, Trust

pytestmark = [pytest.mark.engine, pytest.mark.timeout(2400), pytest.mark.asyncio(loop_scope="module")]

CAPACITY = 320 << 20
KV = 64 << 20
KEEP = 8 << 20
BLOCK = 1 << 20
"""More than a KV block of this model, bytes."""
PROMPTS = ("def main():", "The daemon owns", "class Engine:\n    ")
HOST_RAM = 320 << 20
"""Of the node, bytes: room for the engine's weights and what it saves of its KV, or for `CROWD` beside that."""
CROWD = 256 << 20
FILLS = (0xA5, 0x7F, 0xFF)
"""0x7F7F is huge and 0xFFFF is NaN as bfloat16: what is not restored or zeroed shows."""


class RealLab(Lab):
    engine: VllmEngine
    model: Path
    key: Path
    probes: Sequence[str]

    @asynccontextmanager
    async def elsewhere(self, name: str, **options: object) -> AsyncIterator[VllmEngine]:
        """Another engine of the same model, on the device of another node, that streams its weights."""
        folder = self.folder / name
        folder.mkdir()
        extra = ["--load-format", "vnpu_netloader", "--model-loader-extra-config", json.dumps(options)]
        with DaemonProcess(folder, self.etcd.url, node=name, devices=[f"0:host:{CAPACITY}"]) as daemon:
            await daemon.ready(self.store)
            async with await VllmEngine.start(
                folder, self.etcd.url, name, self.model, node=name, kv=KV, more=[*self.probes, *extra],
                environment={KEY_FILE: str(self.key), "VLLM_CPU_OMP_THREADS_BIND": "1"},
            ) as engine:  # fmt: skip
                yield engine

    async def seed(self, engine: VllmEngine, holds: Callable[[Seed], bool]) -> Seed:
        """Until what this engine serves is so."""
        prefix = keys.seed(engine.engine, "")
        async with asyncio.timeout(self.patience), aclosing(follow(self.store, prefix)) as news:
            async for _ in news:
                for kv in (await self.store.list(prefix)).kvs:
                    if holds(seed := decode(Seed, kv.value)):
                        return seed
        raise AssertionError("the watch ended")

    answers: dict[str, list[int]]

    async def offered(self) -> tuple[Identity, tuple[Extent, ...]]:
        """Which weights the engine serves."""
        offer = await self.engine.probe("offer")
        return msgspec.convert(offer["identity"], Identity), msgspec.convert(offer["extents"], tuple[Extent, ...])

    def fetch(self, seed: Seed, who: Identity, what: Sequence[Extent]) -> Rank:
        rank = Rank([extent.length for extent in what])
        peer = Peer(name="real", host=seed.host, port=seed.port)
        me = Peer(name="me", host="", port=0, ticket=(1.0, "me"), whole=False)
        Client(me, who, rank.addresses, lambda: [peer], dialler(Trust(self.key.read_bytes()))).run(PATIENCE_S)
        return rank

    @asynccontextmanager
    async def crowded(self) -> AsyncIterator[None]:
        """Somebody else takes the node's host memory."""
        other = await self.leader.register("crowd", [self.device], size=CAPACITY)
        async with await Puppet.start(self.daemon.socket, "crowd", other.holder.nonce, "worker") as worker:
            await worker.call("create_master", CROWD)
            yield
        await self.store.revoke_lease(other.lease)

    async def offload_overwrite_restore(self, fill: int) -> None:
        """Another owner takes every page of the device in between and fills it."""
        offloaded = await self.order(self.engine, Order.OFFLOAD)
        assert (offloaded.held.total, offloaded.d2h) == (0, 0)
        await self.overwrite(fill)
        restored = await self.order(self.engine, Order.RESTORE)
        assert restored.phase is Phase.RESIDENT, restored.error

    async def overwrite(self, fill: int) -> None:
        other = await self.leader.register("filler", [self.device], size=CAPACITY)
        who = (self.daemon.socket, "filler", other.holder.nonce)
        async with await Puppet.start(*who, "agent") as agent, await Puppet.start(*who, "worker") as worker:
            chunk = (await self.leader.until(self.device, lambda state: True)).chunk
            granted = await self.leader.grant(other, Order.RESTORE, CAPACITY)
            await agent.enter("0", granted.epoch, granted.revision)
            ids = await worker.map("0", CAPACITY // chunk, fill)
            await worker.unmap("0", ids)
            await agent.leave("0", granted.epoch, granted.revision)
            await self.leader.closed(self.device, granted)
        await self.store.revoke_lease(other.lease)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def lab(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RealLab]:
    folder = tmp_path_factory.mktemp("switching")
    model = await made(folder / "model", "qwen3", "small")
    etcd = RealEtcd(folder, binary=find_binary({}))
    await etcd.start()
    store = etcd.client()
    try:
        more = ("--host-ram", str(HOST_RAM))
        with DaemonProcess(folder, etcd.url, devices=[f"0:host:{CAPACITY}"], more=more) as daemon:
            await daemon.ready(store)
            one = RealLab(folder, etcd, daemon, store, patience=600)
            one.model = model
            await one.leader.elect()
            probes = [
                "--middleware", "tests.helpers.vllm_probe.ProbeGate",
                "--worker-extension-cls", "tests.helpers.vllm_probe.Probe",
            ]  # fmt: skip
            one.probes, one.key = probes, folder / "key"
            one.key.write_text("0123456789abcdef" * 4)
            one.key.chmod(0o600)
            async with await VllmEngine.start(
                folder, etcd.url, "real", model, node=daemon.node, kv=KV, more=probes,
                environment={KEY_FILE: str(one.key), "VNPU_KV_KEEP": str(KEEP)},
            ) as one.engine:  # fmt: skip
                await one.order(one.engine, Order.RESTORE)
                await one.spec(one.engine, lambda spec: spec.measured)
                one.answers = {prompt: await one.engine.complete(prompt) for prompt in PROMPTS}
                yield one
    finally:
        await store.close()
        await etcd.stop()


async def test_the_weights_lie_in_device_pages(lab: RealLab):
    """DESIGN §4: at least 99 %, by smaps; and none of them while the engine is offloaded."""
    memory = await lab.engine.probe("memory")
    worker = lab.engine.worker().pid
    assert resident_bytes(worker, memory["base"], RESERVED) >= 0.99 * weight_bytes(lab.model)
    assert memory["inside"] >= 0.99 * memory["tensors"]
    assert memory["live"] >= 0.99 * weight_bytes(lab.model)
    assert memory["spilled"] <= 0.01 * memory["live"]
    await lab.order(lab.engine, Order.OFFLOAD)
    assert resident_bytes(worker, memory["base"], RESERVED) == 0
    await lab.order(lab.engine, Order.RESTORE)


async def test_outputs_and_weights_are_equal_over_20_cycles(lab: RealLab):
    digest = await lab.engine.probe("digest")
    sealed = (await lab.spec(lab.engine)).digest
    assert sealed.startswith(digest)
    for cycle in range(20):
        await lab.offload_overwrite_restore(FILLS[cycle % len(FILLS)])
        prompt = PROMPTS[cycle % len(PROMPTS)]
        assert await lab.engine.complete(prompt) == lab.answers[prompt]
        assert await lab.engine.probe("digest") == digest


async def test_a_request_in_flight_survives_a_switch_with_identical_tokens(lab: RealLab):
    prompt = "async def watch(self):"
    whole = await lab.engine.complete(prompt, 100)
    tokens: list[int] = []
    switched = False
    async for event in lab.engine.stream(prompt, 100):
        tokens += event["choices"][0]["token_ids"]
        if len(tokens) >= 10 and not switched:
            switched = True
            await lab.offload_overwrite_restore(0xFF)
    assert switched
    assert tokens == whole


async def test_a_client_that_hangs_up_while_its_request_is_frozen_ends_nothing(lab: RealLab):
    """vLLM's scheduler then sends a step of no tokens, though it is paused."""
    async with aclosing(lab.engine.stream("class Daemon:", 400)) as events:
        await anext(events)
        assert (await lab.order(lab.engine, Order.OFFLOAD)).phase is Phase.OFFLOADED
        await lab.load(lab.engine, lambda load: load.running + load.waiting == 1)
    await lab.load(lab.engine, lambda load: load.running + load.waiting == 0)
    await asyncio.sleep(0.5)  # the step of no tokens
    assert (await lab.order(lab.engine, Order.RESTORE)).phase is Phase.RESIDENT
    assert await lab.engine.complete(PROMPTS[0]) == lab.answers[PROMPTS[0]]


async def test_what_was_cached_before_a_switch_is_a_hit_after_it(lab: RealLab):
    prompt = "prefix " * 100
    cold = await lab.engine.complete(prompt, 16)
    await lab.offload_overwrite_restore(0xFF)
    hits = await lab.engine.metric("vllm:prefix_cache_hits_total")
    assert await lab.engine.complete(prompt, 16) == cold
    assert await lab.engine.metric("vllm:prefix_cache_hits_total") >= hits + 64


async def test_what_is_kept_stays_within_its_budget_and_the_most_recent_prefixes_are_hits(lab: RealLab):
    oldest, *_, newest = prompts = [f"{name} " * 100 for name in ("apple", "brook", "cloud", "delta", "ember", "frost")]
    answers = {prompt: await lab.engine.complete(prompt, 8) for prompt in prompts}
    offloaded = await lab.order(lab.engine, Order.OFFLOAD)
    assert KEEP / 2 < offloaded.kv_saved <= KEEP + BLOCK
    await lab.overwrite(0xFF)
    await lab.order(lab.engine, Order.RESTORE)
    before = await lab.engine.metric("vllm:prefix_cache_hits_total")
    assert await lab.engine.complete(newest, 8) == answers[newest]
    after = await lab.engine.metric("vllm:prefix_cache_hits_total")
    assert after >= before + 64
    assert await lab.engine.complete(oldest, 8) == answers[oldest]
    assert await lab.engine.metric("vllm:prefix_cache_hits_total") == after


async def test_a_request_that_holds_more_than_the_budget_is_computed_again(lab: RealLab):
    preempted = await lab.engine.metric("vllm:num_preemptions_total")
    tokens: list[int] = []
    switched = False
    async for event in lab.engine.stream("apple " * 400, 200):  # it is not over when the order comes
        tokens += event["choices"][0]["token_ids"]
        if not switched:
            switched = True
            offloaded = await lab.order(lab.engine, Order.OFFLOAD)
            assert offloaded.kv_saved <= BLOCK
            await lab.overwrite(0xFF)
            await lab.order(lab.engine, Order.RESTORE)
    assert len(tokens) == 200
    assert await lab.engine.metric("vllm:num_preemptions_total") == preempted + 1


@pytest.mark.parametrize("fill", FILLS)
async def test_fresh_blocks_do_not_show_what_another_engine_left_in_them(lab: RealLab, fill: int):
    """The same prompt into blocks that were never written: masked positions too must not be another's NaN."""
    prompt = f"fresh {fill} " * 40
    before = await lab.engine.complete(prompt, 16)
    await lab.offload_overwrite_restore(fill)
    assert await lab.engine.complete(prompt, 16, salt="again") == before


async def test_many_requests_wait_at_the_gate_of_a_sleeping_engine(lab: RealLab):
    await lab.order(lab.engine, Order.OFFLOAD)
    asking = [asyncio.create_task(lab.engine.complete(PROMPTS[0], 8)) for _ in range(16)]
    await lab.load(lab.engine, lambda load: load.waiting == 16)
    await lab.order(lab.engine, Order.RESTORE)
    # Which tokens is another question: a batch rounds otherwise than a request alone.
    assert [len(await one) for one in asking] == [8] * 16


async def test_weights_are_served_awake_asleep_and_across_switches(lab: RealLab):
    """A client in this process: whatever the pages hold meanwhile, what it gets is the same to the last bit."""
    seed = await lab.seed(lab.engine, lambda seed: seed.whole)
    who, what = await lab.offered()

    def fetch() -> tuple[bytes, ...]:
        return lab.fetch(seed, who, what).content

    awake = await asyncio.to_thread(fetch)
    assert sum(map(len, awake)) == seed.total
    await lab.order(lab.engine, Order.OFFLOAD)
    await lab.overwrite(0xA5)
    assert await asyncio.to_thread(fetch) == awake
    await lab.order(lab.engine, Order.RESTORE)
    async with asyncio.TaskGroup() as tasks:
        fetching = tasks.create_task(asyncio.to_thread(lambda: [fetch() == awake for _ in range(3)]))
        for fill in FILLS:
            await lab.offload_overwrite_restore(fill)
    assert fetching.result() == [True] * 3


async def test_weights_that_have_no_room_at_home_come_back_from_an_engine_elsewhere(lab: RealLab):
    """A copy of them, packed as this engine's kernels use them, is served from this process."""
    who, what = await lab.offered()
    rank = await asyncio.to_thread(lab.fetch, await lab.seed(lab.engine, lambda seed: seed.whole), who, what)
    source = Source(manifest(who, what, block_sums(what, rank.addresses)), rank.addresses)
    digest, size = await lab.engine.probe("digest"), sum(extent.length for extent in what)
    trust, serve = Trust(lab.key.read_bytes()), Server(Shelf(source)).serve
    with Listener(LOCAL, 0, trust, wire.SERVICE, serve, max_message=wire.MAX_MESSAGE) as listener:
        seed = Seed(host=LOCAL, port=listener.port, family=who.family, total=size, have=size)
        key = keys.seed("elsewhere", who.fingerprint)
        await lab.store.txn([], [Put(key, encode(seed))])
        async with lab.crowded():
            offloaded = await lab.order(lab.engine, Order.OFFLOAD)
            assert (offloaded.held.total, offloaded.d2h) == (0, 0)
            await lab.overwrite(0xFF)
            restored = await lab.order(lab.engine, Order.RESTORE)
        assert restored.phase is Phase.RESIDENT, restored.error
        assert "fetch" in {step.name for step in restored.steps}
        await lab.store.txn([], [Delete(key)])
    assert await lab.engine.probe("digest") == digest
    for prompt in PROMPTS:
        assert await lab.engine.complete(prompt) == lab.answers[prompt]
        assert await lab.engine.complete(prompt, salt="again") == lab.answers[prompt]
    offloaded = await lab.order(lab.engine, Order.OFFLOAD)
    assert offloaded.d2h >= 0.99 * weight_bytes(lab.model)
    await lab.order(lab.engine, Order.RESTORE)


async def test_an_engine_on_another_node_streams_its_weights_from_one_that_serves(lab: RealLab):
    """Found by etcd alone; equal to the last bit, and a source itself. The other one answers all the while."""
    await lab.seed(lab.engine, lambda seed: seed.whole)
    answers = 0
    async with lab.elsewhere("second") as second:

        async def keep_asking() -> None:
            nonlocal answers
            while True:
                assert await lab.engine.complete(PROMPTS[0]) == lab.answers[PROMPTS[0]]
                answers += 1

        asking = asyncio.create_task(keep_asking())
        await lab.order(second, Order.RESTORE)
        await lab.spec(second, lambda spec: spec.measured)
        asking.cancel()
        await asyncio.wait([asking])
        assert asking.cancelled(), asking.exception()
        assert answers > 0
        assert "bytes streamed in" in second.log.read_text()
        assert await second.probe("digest") == await lab.engine.probe("digest")
        for prompt in PROMPTS:
            assert await second.complete(prompt) == lab.answers[prompt]
        assert (await lab.seed(second, lambda seed: seed.whole)).total > 0


async def test_an_engine_whose_source_fails_loads_from_disk_and_nothing_of_the_attempt_is_left(lab: RealLab):
    """The model was built already when the source turned out to be none."""
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        source = [{"device_id": 0, "sources": [f"127.0.0.1:{deaf.getsockname()[1]}"]}]
        async with lab.elsewhere("third", SOURCE=source, LIMIT_S=1) as third:
            await lab.order(third, Order.RESTORE)
            await lab.spec(third, lambda spec: spec.measured)
            log = third.log.read_text()
            assert "weights come from disk: " in log
            assert "bytes streamed in" not in log
            assert await third.probe("digest") == await lab.engine.probe("digest")
            assert await third.complete(PROMPTS[0]) == lab.answers[PROMPTS[0]]
            await lab.seed(third, lambda seed: seed.whole)


async def test_every_layer_has_stages_of_its_own_and_what_all_share_comes_first(lab: RealLab):
    """Packed weights are found too (qkv, o, gate and up, down): stage 0 has hardly more than the embedding."""
    first, *stages, head = await lab.engine.probe("stages")
    weights = await asyncio.to_thread(weight_bytes, lab.model)
    layers = [sum(layer) for layer in zip(*[iter(stages)] * 5, strict=True)]
    assert head > 0
    assert min(layers) > 0
    assert max(stages) < max(layers), "a layer's weights do not all come in one stage"
    assert sum(layers) >= 0.5 * weights
    assert first <= 0.35 * weights


async def test_a_piece_left_out_of_a_restore_is_caught_before_its_layer_runs(lab: RealLab):
    """The engine says why, answers who waits and who was being served, and ends; its pages come back."""
    await lab.engine.probe("skip")
    family = [process.pid for process in lab.engine.family()]
    events: list[dict[str, object]] = []
    asking = None
    async for event in lab.engine.stream("in flight", 500):
        events.append(event)
        if asking is None:
            await lab.order(lab.engine, Order.OFFLOAD)
            await lab.overwrite(0xA5)
            asking = asyncio.create_task(lab.engine.post(PROMPTS[0]))
            await lab.load(lab.engine, lambda load: load.waiting == 2)
            failed = asyncio.create_task(lab.residency(lab.engine, lambda r: r.phase is Phase.FAILED))
            await lab.grant(lab.engine, Order.RESTORE)
    assert "came back wrong" in str(events[-1]["error"])
    assert asking is not None
    status, body = await asking
    assert status == 503
    assert "came back wrong" in body["error"]["message"]
    assert "came back wrong" in (await failed).error
    assert SPOILT_LAYER_RAN not in lab.engine.log.read_text()
    assert await lab.engine.ended() != 0
    await lab.leader.until(lab.device, lambda state: not state.owners and state.open is None)
    await eventually(lambda: not any(alive(pid) for pid in family))
