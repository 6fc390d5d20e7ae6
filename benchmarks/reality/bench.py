"""What the simulator is told is measured before the trace; then the trace for real; then in virtual time."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Sequence

import aiohttp
import msgspec
from rich.progress import Progress

from benchmarks.reality.setting import CAPACITY, KEEP_ALIVE_S, KINDS, KV, MIN_RESIDENCY_S, TOKENS, trace
from coordinator.core.model import Phase
from coordinator.core.policies.registry import make
from coordinator.demo import memcpy
from coordinator.demo.audit import Audit
from coordinator.demo.client import Answer, ask, connect
from coordinator.demo.scenario import Prompt
from coordinator.simulate.fleet import Device, Duration, Fleet, Model, Size
from coordinator.simulate.trace import Request
from coordinator.simulate.world import Delays, World
from coordinator.store import keys
from coordinator.store.base import Put, Store
from coordinator.supervise.layout import RunFile

LIMIT_S = 180.0
SETTLE_S = 0.3
PAUSE_S = 1.0
SAMPLE = 64 << 20
"""Bytes of memcpy."""
DEVICE = "bench/0"
LEAST_COPY_S = 1e-4
"""A copy that cannot be told from noise took so long at least."""


class Wake(msgspec.Struct, frozen=True):
    """One wake from sleep: seconds to the first token beyond those of an awake engine, and the bytes it copied."""

    added: float
    copied: int


class Measured(msgspec.Struct, frozen=True):
    """One model, before the trace. Seconds: to the first token awake, of a token, of leaving."""

    first: float
    decode: float
    leave: float
    weights: int
    saved: int
    wakes: tuple[Wake, ...]


class Told(msgspec.Struct, frozen=True):
    """Of one request of the trace, seconds to its first token, and whether its model was asleep when it came."""

    ttft: float
    cold: bool


class Samples(msgspec.Struct, frozen=True):
    """Both runs, request by request, and what each of them moved."""

    real: list[Told]
    simulated: list[Told]
    restores: tuple[int, int]
    copied: tuple[int, int]
    bandwidth: float
    memcpy: tuple[float, float]
    """Seconds a byte: while the simulator's figures were measured, and during the trace."""


class Bench:
    def __init__(self, found: RunFile, audit: Audit, store: Store, progress: Progress) -> None:
        self._admin = found.admin
        self._audit = audit
        self._store = store
        self._progress = progress
        self._client = connect(found.gateway)
        self._asked = 0

    async def run(self, seconds: float, rounds: int) -> Samples:
        try:
            await self._audit.until(lambda: all(self._audit.phase(m) for m in KINDS), LIMIT_S, "three engines")
            quiet = await self._memcpy()
            measured = await self._measure(rounds)
            hop = await self._hop()
            requests = trace(seconds)
            for name in KINDS:
                await self._asleep(name)
            seen = {name: len(self._audit.history[name]) for name in KINDS}
            before = await self._memcpy()
            real = await self._replay(requests)
            after = await self._memcpy()
            await asyncio.sleep(SETTLE_S)
            restored = [residency for name in KINDS for residency in self._restored(name, seen[name])]
        finally:
            await self._client.close()
        bandwidth = fitted([wake for each in measured.values() for wake in each.wakes])
        world = World(fleet(measured, bandwidth, hop), requests, make("cost_aware"), delays=hop, remains=True)
        world.run()
        moved = [move.bytes for move in world.moves if move.order.value == "restore"]
        kv = len(moved) * KV
        return Samples(
            real=real,
            simulated=[Told(job.ttft, job.cold) for job in world.jobs if job.ttft is not None],
            restores=(len(moved), len(restored)),
            copied=(sum(moved) - kv, sum(restored)),
            bandwidth=bandwidth,
            memcpy=((quiet + before) / 2, (before + after) / 2),
        )

    async def _memcpy(self) -> float:
        return await asyncio.to_thread(memcpy.seconds_per_byte, SAMPLE)

    # ---- before the trace

    async def _measure(self, rounds: int) -> dict[str, Measured]:
        task = self._progress.add_task("measuring what the simulator is told", total=len(KINDS))
        found = {}
        for name in KINDS:
            found[name] = await self._model(name, rounds)
            self._progress.advance(task)
        return found

    async def _model(self, name: str, rounds: int) -> Measured:
        """Awake, as in the trace: after a pause, and after another model's answer; back to its own pages; back after
        the others have been there."""
        beside = next(each for each in KINDS if each != name)
        for each in (beside, name):
            await self._ask(each)
        awake = []
        for _ in range(3 * rounds):
            await self._ask(beside)
            await asyncio.sleep(PAUSE_S)
            awake.append(await self._ask(name))
        first = statistics.median(each.ttft_s for each in awake)
        decode = statistics.median((each.total_s - each.ttft_s) / (TOKENS - 1) for each in awake)
        wakes: list[Wake] = []
        leaving, saved = [], []
        for _ in range(rounds):
            for others in ((), tuple(each for each in KINDS if each != name)):
                await self._asleep(name)
                residency = self._audit.residency(name)
                leaving.append(sum(step.seconds for step in residency.steps))
                saved.append(residency.kv_saved)
                for other in others:
                    await self._ask(other)
                for other in others:
                    await self._asleep(other)
                wakes.append(await self._wake(name, first))
        held = self._audit.residency(name).held
        return Measured(
            first, decode, statistics.median(leaving), held.weights, int(statistics.median(saved)), tuple(wakes)
        )

    async def _wake(self, name: str, first: float) -> Wake:
        seen = len(self._audit.history[name])
        answer = await self._ask(name)
        await self._audit.until(lambda: bool(self._restored(name, seen)), LIMIT_S, f"{name} back")
        return Wake(answer.ttft_s - first, self._restored(name, seen)[-1])

    async def _hop(self) -> Delays:
        """One transaction of this etcd; what a watch takes is not more."""
        took = []
        for number in range(21):
            begun = time.monotonic()
            await self._store.txn([], [Put(f"{keys.ROOT}probe/{number % 2}", b"{}")])
            took.append(time.monotonic() - begun)
        return Delays(statistics.median(took), statistics.median(took))

    async def _asleep(self, name: str) -> None:
        await asyncio.sleep(SETTLE_S)  # its load is said
        if self._audit.phase(name) is not Phase.OFFLOADED:
            url = f"{self._admin}/v1/models/{name}/sleep"
            async with aiohttp.ClientSession(raise_for_status=True) as http, http.post(url):
                pass
        await self._audit.until(lambda: self._audit.phase(name) is Phase.OFFLOADED, LIMIT_S, f"{name} asleep")

    def _restored(self, name: str, seen: int) -> list[int]:
        """Bytes that were copied, of each restore since so many residencies."""
        answers = {
            one.residency.fence: one.residency.restored
            for one in self._audit.history[name][seen:]
            if one.residency.phase is Phase.RESIDENT and not one.residency.busy
        }
        return list(answers.values())

    async def _ask(self, name: str) -> Answer:
        self._asked += 1
        return await ask(self._client, Prompt(name, f"{self._asked} {time.time_ns() % 1_000_000:06}", TOKENS))

    # ---- the trace

    async def _replay(self, requests: Sequence[Request]) -> list[Told]:
        """Each request at its time, whatever became of those before it."""
        task = self._progress.add_task("the trace", total=len(requests))
        begun = time.monotonic()

        async def one(request: Request) -> Told:
            await asyncio.sleep(max(0.0, begun + request.t - time.monotonic()))
            cold = self._audit.phase(request.model) is not Phase.RESIDENT
            answer = await self._ask(request.model)
            self._progress.advance(task)
            return Told(answer.ttft_s, cold)

        return list(await asyncio.gather(*(one(request) for request in requests)))


def fitted(wakes: Sequence[Wake]) -> float:
    """Bytes a second: how much longer wakes took that copied more."""
    copied, added = [wake.copied for wake in wakes], [wake.added for wake in wakes]
    middle = statistics.median(copied)
    much = [wake for wake in wakes if wake.copied > middle]
    little = [wake for wake in wakes if wake.copied <= middle]
    if not much:
        return max(copied) / LEAST_COPY_S if max(copied) else 1 / LEAST_COPY_S
    more = statistics.median(w.copied for w in much) - statistics.median(w.copied for w in little)
    longer = statistics.median(w.added for w in much) - statistics.median(w.added for w in little)
    return more / max(longer, LEAST_COPY_S, min(added) * 1e-3)


def fleet(measured: dict[str, Measured], bandwidth: float, hop: Delays) -> Fleet:
    """What the simulator is told. The way to the order is in a measured wake; the simulator adds it itself."""

    def model(of: Measured) -> Model:
        fixed = statistics.median(wake.added - wake.copied / bandwidth for wake in of.wakes)
        return Model(
            weights=Size(of.weights),
            devices=[DEVICE],
            kv=Size(KV),
            saved=Size(of.saved),
            fixed=Duration(max(0.0, fixed - hop.transaction - hop.watch)),
            leave=Duration(of.leave),
            first=Duration(of.first),
            decode=Duration(of.decode),
            keep_alive=Duration(KEEP_ALIVE_S),
            min_residency=Duration(MIN_RESIDENCY_S),
        )

    device = Device(DEVICE, Size(CAPACITY), restore=Size(bandwidth), offload=Size(bandwidth))
    return Fleet([device], {name: model(of) for name, of in measured.items()})
