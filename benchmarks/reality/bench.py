"""What the simulator is told is measured before and after the trace; the trace for real; then in virtual time."""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections.abc import Iterable, Sequence

import aiohttp
import msgspec
from rich.progress import Progress

from benchmarks.reality.setting import (
    AFTER,
    BEFORE,
    CAPACITY,
    JUDGED,
    KEEP_ALIVE_S,
    KINDS,
    KV,
    MIN_RESIDENCY_S,
    TOKENS,
    trace,
)
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
SAMPLE = 64 << 20
"""Bytes of memcpy."""
DEVICE = "bench/0"
TICKS = 1e6
"""A simulated prompt has a token for each microsecond that it takes."""
LEAST_COPY_S = 1e-4
"""A copy that cannot be told from noise took so long at least."""


class Told(msgspec.Struct, frozen=True):
    """Of one request, seconds to its first token and from token to token, and whether its model was asleep when it
    came."""

    model: str
    ttft: float
    cold: bool
    decode: float = 0.0


class Wake(msgspec.Struct, frozen=True):
    """One wake from sleep into free memory: seconds to the first token, and the bytes it copied."""

    ttft: float
    copied: int


class Measured(msgspec.Struct):
    """One model, beside the trace: requests that found it awake, wakes, seconds of leaving, bytes of KV it kept."""

    awake: list[Told] = []
    wakes: list[Wake] = []
    leaving: list[float] = []
    saved: list[int] = []
    weights: int = 0

    @property
    def first(self) -> float:
        """Seconds to the first token, awake: the median."""
        return statistics.median(told.ttft for told in self.awake)


class Samples(msgspec.Struct, frozen=True):
    """Both runs, request by request, and what each of them moved."""

    real: list[Told]
    simulated: list[Told]
    restores: tuple[int, int]
    copied: tuple[int, int]
    bandwidth: float
    memcpy: tuple[float, float]
    """Seconds a byte: while the simulator's figures were measured, and at both ends of the trace."""


class Bench:
    def __init__(self, found: RunFile, audit: Audit, store: Store, progress: Progress) -> None:
        self._admin = found.admin
        self._audit = audit
        self._store = store
        self._progress = progress
        self._client = connect(found.gateway)
        self._asked = 0

    async def run(self, seconds: float, practice: float, rounds: int) -> Samples:
        """The trace, and before and after it half of what the simulator is told."""
        measured = {name: Measured() for name in KINDS}
        try:
            await self._audit.until(lambda: all(self._audit.phase(m) for m in KINDS), LIMIT_S, "three engines")
            speeds = [await self._memcpy()]
            await self._measure(measured, rounds, trace(practice, BEFORE))
            hop = await self._hop()
            speeds.append(await self._memcpy())
            real, restored = await self._judged(trace(seconds, JUDGED))
            speeds.append(await self._memcpy())
            await self._measure(measured, rounds, trace(practice, AFTER))
            speeds.append(await self._memcpy())
        finally:
            await self._client.close()
        bandwidth = fitted(measured.values())
        world = World(
            fleet(measured, bandwidth, hop), asked(measured, trace(seconds, JUDGED)), make("cost_aware"), delays=hop,
            remains=True,
        )  # fmt: skip
        world.run()
        moved = [move.bytes for move in world.moves if move.order.value == "restore"]
        return Samples(
            real=real,
            simulated=[Told(job.request.model, job.ttft, job.cold) for job in world.jobs if job.ttft is not None],
            restores=(len(moved), len(restored)),
            copied=(sum(moved) - len(moved) * KV, sum(restored)),
            bandwidth=bandwidth,
            memcpy=((speeds[0] + speeds[3]) / 2, (speeds[1] + speeds[2]) / 2),
        )

    async def _judged(self, requests: Sequence[Request]) -> tuple[list[Told], list[int]]:
        """From all asleep; and the bytes of each restore."""
        for name in KINDS:
            await self._asleep(name)
        seen = {name: len(self._audit.history[name]) for name in KINDS}
        told = await self._replay(requests, "the trace")
        await asyncio.sleep(SETTLE_S)
        return told, [copied for name in KINDS for copied in self._restored(name, seen[name])]

    async def _memcpy(self) -> float:
        return await asyncio.to_thread(memcpy.seconds_per_byte, SAMPLE)

    # ---- beside the trace

    async def _measure(self, measured: dict[str, Measured], rounds: int, practice: Sequence[Request]) -> None:
        """What requests to awake models take is practised: the same load by other arrivals."""
        told = await self._replay(practice, "practising")
        task = self._progress.add_task("waking each model", total=len(KINDS))
        for name, of in measured.items():
            await self._wakes(name, of, rounds)
            awake = [one for one in told if one.model == name and not one.cold]
            of.awake += awake or [await self._one(name)]
            self._progress.advance(task)

    async def _wakes(self, name: str, of: Measured, rounds: int) -> None:
        """Back to its own pages, and back after the others have been there."""
        for _ in range(rounds):
            for others in ((), tuple(each for each in KINDS if each != name)):
                await self._asleep(name)
                residency = self._audit.residency(name)
                of.leaving.append(sum(step.seconds for step in residency.steps))
                of.saved.append(residency.kv_saved)
                for other in others:
                    await self._ask(other)
                for other in others:
                    await self._asleep(other)
                of.wakes.append(await self._wake(name))
        of.weights = self._audit.residency(name).held.weights

    async def _wake(self, name: str) -> Wake:
        seen = len(self._audit.history[name])
        answer = await self._ask(name)
        await self._audit.until(lambda: bool(self._restored(name, seen)), LIMIT_S, f"{name} back")
        return Wake(answer.ttft_s, self._restored(name, seen)[-1])

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

    async def _one(self, model: str) -> Told:
        cold = self._audit.phase(model) is not Phase.RESIDENT
        answer = await self._ask(model)
        return Told(model, answer.ttft_s, cold, (answer.total_s - answer.ttft_s) / (TOKENS - 1))

    async def _replay(self, requests: Sequence[Request], what: str) -> list[Told]:
        """Each request at its time, whatever became of those before it."""
        task = self._progress.add_task(what, total=len(requests))
        begun = time.monotonic()

        async def one(request: Request) -> Told:
            await asyncio.sleep(max(0.0, begun + request.t - time.monotonic()))
            told = await self._one(request.model)
            self._progress.advance(task)
            return told

        return list(await asyncio.gather(*(one(request) for request in requests)))


def fitted(measured: Iterable[Measured]) -> float:
    """Bytes a second: how much longer wakes took that copied more."""
    wakes = [(wake.copied, wake.ttft - of.first) for of in measured for wake in of.wakes]
    middle = statistics.median(copied for copied, _ in wakes)
    much = [wake for wake in wakes if wake[0] > middle]
    little = [wake for wake in wakes if wake[0] <= middle]
    if not much:
        return max(max(copied for copied, _ in wakes), 1) / LEAST_COPY_S
    more = statistics.median(copied for copied, _ in much) - statistics.median(copied for copied, _ in little)
    longer = statistics.median(added for _, added in much) - statistics.median(added for _, added in little)
    return more / max(longer, LEAST_COPY_S)


def fleet(measured: dict[str, Measured], bandwidth: float, hop: Delays) -> Fleet:
    """What the simulator is told. The way to the order is in a measured wake; the simulator adds it itself."""

    def model(of: Measured) -> Model:
        fixed = statistics.median(wake.ttft - of.first - wake.copied / bandwidth for wake in of.wakes)
        return Model(
            weights=Size(of.weights),
            devices=[DEVICE],
            kv=Size(KV),
            saved=Size(int(statistics.median(of.saved))),
            fixed=Duration(max(0.0, fixed - hop.transaction - hop.watch)),
            leave=Duration(statistics.median(of.leaving)),
            prefill=TICKS,
            decode=Duration(statistics.median(told.decode for told in of.awake)),
            keep_alive=Duration(KEEP_ALIVE_S),
            min_residency=Duration(MIN_RESIDENCY_S),
        )

    device = Device(DEVICE, Size(CAPACITY), restore=Size(bandwidth), offload=Size(bandwidth))
    return Fleet([device], {name: model(of) for name, of in measured.items()})


def asked(measured: dict[str, Measured], requests: Iterable[Request]) -> list[Request]:
    """Each takes as long to its first token as one that found its model awake in practice, drawn at random."""
    draw = random.Random(JUDGED)
    return [
        msgspec.structs.replace(each, prompt_tokens=round(TICKS * draw.choice(measured[each.model].awake).ttft))
        for each in requests
    ]
