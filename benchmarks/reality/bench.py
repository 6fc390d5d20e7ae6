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
    APART_S,
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
from coordinator.core.model import Order, Phase
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
DRAWS = 25
"""So often service times are drawn for the simulated trace, so that the figure is not one draw's luck."""


class Told(msgspec.Struct, frozen=True):
    """Of one request, seconds to its first token and from token to token, and whether its model was asleep when it
    came."""

    model: str
    ttft: float
    cold: bool
    decode: float = 0.0


class Wake(msgspec.Struct, frozen=True):
    """One wake from sleep into free memory, with nothing else to do: seconds to the first token, the bytes it copied,
    and seconds to the first token of the next request, which found the model awake and as quiet."""

    ttft: float
    copied: int
    awake: float

    @property
    def added(self) -> float:
        """Seconds that it took for having been asleep."""
        return self.ttft - self.awake


class Measured(msgspec.Struct):
    """One model, beside the trace: requests that found it awake, wakes, seconds of leaving, bytes of KV it kept."""

    awake: list[Told] = []
    wakes: list[Wake] = []
    leaving: list[float] = []
    saved: list[int] = []
    weights: int = 0


class Replay(msgspec.Struct, frozen=True):
    """The trace once, request by request, and the bytes that each restore in it copied."""

    told: list[Told]
    copied: list[int]


class Samples(msgspec.Struct, frozen=True):
    """The trace for real, and in virtual time as often as service times were drawn."""

    real: Replay
    simulated: list[Replay]
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
            real = await self._judged(trace(seconds, JUDGED))
            speeds.append(await self._memcpy())
            await self._measure(measured, rounds, trace(practice, AFTER))
            speeds.append(await self._memcpy())
        finally:
            await self._client.close()
        bandwidth = fitted(measured.values())
        told = fleet(measured, bandwidth, hop)
        return Samples(
            real=real,
            simulated=[simulated(told, asked(measured, trace(seconds, JUDGED), draw), hop) for draw in range(DRAWS)],
            bandwidth=bandwidth,
            memcpy=((speeds[0] + speeds[3]) / 2, (speeds[1] + speeds[2]) / 2),
        )

    async def _judged(self, requests: Sequence[Request]) -> Replay:
        """From all asleep; then each was there once, so that what lies on the device is known: that is not judged."""
        for name in KINDS:
            await self._asleep(name)
        await self._replay(requests[: len(KINDS)], "each once")
        await asyncio.sleep(SETTLE_S)
        seen = {name: len(self._audit.history[name]) for name in KINDS}
        told = await self._replay(requests[len(KINDS) :], "the trace", since=requests[0].t + len(KINDS) * APART_S)
        await asyncio.sleep(SETTLE_S)
        return Replay(told, [copied for name in KINDS for copied in self._restored(name, seen[name])])

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
        await asyncio.sleep(SETTLE_S)
        awake = await self._ask(name)
        return Wake(answer.ttft_s, self._restored(name, seen)[-1], awake.ttft_s)

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

    async def _replay(self, requests: Sequence[Request], what: str, *, since: float = 0.0) -> list[Told]:
        """Each request at its time, whatever became of those before it. `since`: when on their clock it is now."""
        task = self._progress.add_task(what, total=len(requests))
        begun = time.monotonic() - since

        async def one(request: Request) -> Told:
            await asyncio.sleep(max(0.0, begun + request.t - time.monotonic()))
            told = await self._one(request.model)
            self._progress.advance(task)
            return told

        return list(await asyncio.gather(*(one(request) for request in requests)))


def fitted(measured: Iterable[Measured]) -> float:
    """Bytes a second: how much longer wakes took that copied more."""
    wakes = [wake for of in measured for wake in of.wakes]
    middle = statistics.median(wake.copied for wake in wakes)
    much = [wake for wake in wakes if wake.copied > middle]
    little = [wake for wake in wakes if wake.copied <= middle]
    if not much:
        return max(max(wake.copied for wake in wakes), 1) / LEAST_COPY_S
    more = statistics.median(wake.copied for wake in much) - statistics.median(wake.copied for wake in little)
    longer = statistics.median(wake.added for wake in much) - statistics.median(wake.added for wake in little)
    return more / max(longer, LEAST_COPY_S)


def fleet(measured: dict[str, Measured], bandwidth: float, hop: Delays) -> Fleet:
    """What the simulator is told. The way to the order is in a measured wake; the simulator adds it itself."""

    def model(of: Measured) -> Model:
        fixed = statistics.median(wake.added - wake.copied / bandwidth for wake in of.wakes)
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


def asked(measured: dict[str, Measured], requests: Iterable[Request], seed: int) -> list[Request]:
    """Each takes as long to its first token as one that found its model awake in practice, drawn at random."""
    draw = random.Random(seed)
    return [
        msgspec.structs.replace(each, prompt_tokens=round(TICKS * draw.choice(measured[each.model].awake).ttft))
        for each in requests
    ]


def simulated(told: Fleet, requests: Sequence[Request], hop: Delays) -> Replay:
    """The trace in virtual time, after each was there once."""
    world = World(told, requests, make("cost_aware"), delays=hop, remains=True)
    world.run()
    begins = requests[0].t + len(KINDS) * APART_S
    copied = [move.bytes - KV for move in world.moves if move.order is Order.RESTORE and move.at >= begins]
    jobs = [job for job in world.jobs if job.request.t >= begins]
    return Replay([Told(job.request.model, job.ttft, job.cold) for job in jobs if job.ttft is not None], copied)
