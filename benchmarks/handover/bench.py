"""The pairs of `handover`: raw put and order; deaths of holders and of leaders; and what one switch writes."""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path

import msgspec
from rich.progress import Progress

from benchmarks import figures
from benchmarks.handover.engine import PROBES
from benchmarks.handover.setting import FIRST, SECOND, Member, Setting, running
from coordinator.core.model import Phase
from coordinator.demo import memcpy
from coordinator.store import keys
from coordinator.store.base import Put

SAMPLE = 64 << 20
WAITING_S = 0.3
"""A request that waits has reached the scheduler by then."""
SETTLED_S = 1.0
"""What a switch writes has been written by then."""
SWITCHES = 5
OWN = ("tokens/", "seats/", "decisions/", "nodes/")
"""Keys by which a switch is ordered and closed; with engines' residencies, all that it writes."""


class Paired(msgspec.Struct, frozen=True):
    """Seconds: one raw put until the engine's watch has it; a request at a gateway until the engine's watch has its
    order, at the leader's gateway and at another's."""

    raw: float
    order: float
    remote: float


class Samples(msgspec.Struct):
    """Everything measured. Takeovers and failovers in seconds."""

    pairs: list[Paired] = []
    notice: list[float] = []
    lease: list[float] = []
    failover: list[float] = []
    transactions: list[int] = []
    sequential: list[int] = []
    wrote: str = ""
    ttl: float = 0.0
    dropped: int = 0


class Size(msgspec.Struct, frozen=True):
    """How often: pairs of raw put and order, takeovers of each kind, failovers."""

    pairs: int
    takeovers: int
    failovers: int


FULL = Size(300, 5, 5)
QUICK = Size(5, 1, 1)


async def measure(size: Size, progress: Progress) -> Samples:
    samples = Samples()
    with tempfile.TemporaryDirectory(prefix="vnpu-handover-") as folder:
        plain, mute = Path(folder) / "plain", Path(folder) / "mute"
        plain.mkdir()
        mute.mkdir()
        async with running(plain, coordinators=2) as setting:
            samples.ttl = setting.ttl
            await _orders(setting, samples, size.pairs, progress)
            await _takeovers(setting, samples.notice, size.takeovers, progress)
            await _failovers(setting, samples, size.failovers, progress)
        async with running(mute, mute=True) as setting:
            await setting.engine(SECOND)
            await _takeovers(setting, samples.lease, size.takeovers, progress)
    return samples


async def _orders(setting: Setting, samples: Samples, count: int, progress: Progress) -> None:
    await setting.engine(SECOND)
    await setting.engine(FIRST)
    task = progress.add_task("switches and orders", total=count + SWITCHES)
    for _ in range(SWITCHES):
        await _switch(setting, samples)
        progress.advance(task)
    await setting.sleep(FIRST)
    leader, standby = await setting.leader(), await setting.standby()
    for number in range(count):
        before = await asyncio.to_thread(memcpy.seconds_per_byte, SAMPLE, 2)
        pair = Paired(
            raw=await _raw(setting, number),
            order=await _order(setting, leader),
            remote=await _order(setting, standby),
        )
        if figures.steady(before, await asyncio.to_thread(memcpy.seconds_per_byte, SAMPLE, 2)):
            samples.pairs.append(pair)
        else:
            samples.dropped += 1
        progress.advance(task)


async def _raw(setting: Setting, number: int) -> float:
    """One put of the benchmark until the engine's agent has it from its watch."""
    key = f"{PROBES}{number}"
    begun = time.monotonic()
    await setting.store.txn([], [Put(key, b"{}")])
    return (await setting.stamps[SECOND].probe(key)).at - begun


async def _order(setting: Setting, member: Member) -> float:
    """A request to a sleeping model, into free memory, until the engine's agent has the order; it sleeps again then."""
    newest = (await setting.store.list(keys.EPOCH)).revision
    begun = time.monotonic()
    asking = asyncio.create_task(setting.ask(member, SECOND))
    seconds = (await setting.stamps[SECOND].order(SECOND, newest)).at - begun
    await asking
    await setting.phase(SECOND, Phase.RESIDENT)
    await setting.sleep(SECOND)
    return seconds


async def _switch(setting: Setting, samples: Samples) -> None:
    """SECOND leaves for FIRST: what stands in etcd's history of that."""
    await setting.sleep(FIRST)
    leader = await setting.leader()
    await setting.ask(leader, SECOND)
    await setting.phase(SECOND, Phase.RESIDENT)
    await asyncio.sleep(SETTLED_S)
    first = (await setting.store.list(keys.EPOCH)).revision
    await setting.ask(leader, FIRST)
    await setting.phase(FIRST, Phase.RESIDENT)
    await asyncio.sleep(SETTLED_S)
    last = (await setting.store.list(keys.EPOCH)).revision
    written = await _written(setting, first + 1, last)
    samples.transactions.append(sum(_of_switch(each) for each in written))
    samples.sequential.append(sum(_sequential(each) for each in written))
    samples.wrote = "; ".join("+".join(each) for each in written if _of_switch(each))


async def _written(setting: Setting, first: int, last: int) -> list[tuple[str, ...]]:
    """Keys of each transaction (a revision is one) from `first` to `last`; the heartbeat sees to it that it ends."""
    found: list[tuple[str, ...]] = []
    async with asyncio.timeout(10), aclosing(setting.store.watch(keys.ROOT, first)) as history:
        async for changes in history:
            if changes.revision > last:
                break
            found.append(tuple(change.key.removeprefix(keys.ROOT) for change in changes.changes))
    return found


def _of_switch(written: Sequence[str]) -> bool:
    return any(key.startswith(OWN) or key.endswith("/residency") for key in written)


def _sequential(written: Sequence[str]) -> bool:
    """Orders and what the daemon answers: one waits for the other."""
    return any(key.startswith(OWN) for key in written)


async def _takeovers(setting: Setting, taken: list[float], count: int, progress: Progress) -> None:
    """kill -9 of the resident FIRST while a request waits for SECOND, until SECOND's agent has its order."""
    task = progress.add_task("takeovers", total=count)
    for _ in range(count):
        if FIRST not in setting.engines:
            await setting.engine(FIRST)
        leader = await setting.leader()
        await setting.ask(leader, FIRST)
        await setting.phase(FIRST, Phase.RESIDENT)
        await setting.phase(SECOND, Phase.OFFLOADED)
        asking = asyncio.create_task(setting.ask(leader, SECOND))
        await asyncio.sleep(WAITING_S)
        newest = (await setting.store.list(keys.EPOCH)).revision
        begun = time.monotonic()
        setting.engines[FIRST].kill()
        taken.append((await setting.stamps[SECOND].order(SECOND, newest)).at - begun)
        await asking
        await setting.lose(FIRST)
        await setting.audit.until(lambda: FIRST not in setting.audit.specs, 60.0, "the dead engine's keys gone")
        progress.advance(task)


async def _failovers(setting: Setting, samples: Samples, count: int, progress: Progress) -> None:
    """kill -9 of the leader; a request for the sleeping SECOND at the standby's gateway, until its order."""
    task = progress.add_task("failovers", total=count)
    for _ in range(count):
        await setting.sleep(SECOND)
        leader, standby = await setting.leader(), await setting.standby()
        newest = (await setting.store.list(keys.EPOCH)).revision
        begun = time.monotonic()
        await setting.retire(leader)
        asking = asyncio.create_task(setting.ask(standby, SECOND))
        samples.failover.append((await setting.stamps[SECOND].order(SECOND, newest)).at - begun)
        await asking
        await setting.phase(SECOND, Phase.RESIDENT)
        await setting.coordinator()
        progress.advance(task)


def percentile(values: Sequence[float], share: float) -> float:
    """Nearest rank."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def middle(values: Sequence[float]) -> float:
    return statistics.median(values)
