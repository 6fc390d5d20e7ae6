"""The pairs of `wake`: asleep and awake, from pages that nobody needed, into free memory and after a victim, idle and
busy, and one cold start."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import statistics
import time

import aiohttp
import msgspec
from rich.progress import Progress

from benchmarks import figures
from benchmarks.wake.setting import KV_CACHE, OTHER, SUBJECT
from benchmarks.wake.smaps import device_bytes
from coordinator.core.model import Phase, Residency
from coordinator.demo import memcpy
from coordinator.demo.audit import Audit, Seen
from coordinator.demo.client import Answer, ask, connect
from coordinator.demo.scenario import Prompt
from coordinator.supervise.layout import RunFile

LIMIT_S = 120.0
RESTART_LIMIT_S = 300.0
SAMPLE = 256 << 20
SETTLE_S = 0.5
"""Before each wake that is measured: what came before is over (workers spin on, chunks are wiped, keys are put)."""
LONG = 200
"""Words of the prompt whose KV is kept, and computed again."""
KEPT = 5
"""Pairs of that at most: each takes seconds."""


class Samples(msgspec.Struct):
    """Everything measured, as paired ratios."""

    hot: list[float] = []
    free: list[float] = []
    full: list[float] = []
    cold_over_wake: list[float] = []
    switch: list[float] = []
    switch_busy: list[float] = []
    recompute_over_keep: list[float] = []
    values: dict[str, float] = {}
    notes: list[str] = []
    dropped: int = 0


class Bench:
    """Where it is not `judged`, no pair is dropped: a smoke must not depend on how even the machine is."""

    def __init__(self, found: RunFile, audit: Audit, weights: int, progress: Progress, *, judged: bool) -> None:
        self._found = found
        self._judged = judged
        self._audit = audit
        self._weights = weights
        self._progress = progress
        self._client = connect(found.gateway)
        self._samples = Samples()
        self._asked = 0
        self._wakes: list[float] = []
        self._d2h = 0
        self._restored = 0
        self._last_wake = 0.0

    async def run(self, pairs: int) -> Samples:
        await self._audit.until(lambda: all(self._audit.phase(m) is not None for m in (SUBJECT, OTHER)), LIMIT_S)
        await self._ask(OTHER)
        await self._ask(SUBJECT)
        self._samples.values["moved_share"] = self._moved_share()
        task = self._progress.add_task("pairs", total=pairs)
        for _ in range(pairs):
            await self._pair()
            self._progress.advance(task)
        for _ in range(min(pairs, KEPT)):  # last: what is kept goes along with each wake from then on
            await self._keep_or_compute()
        await self._cold()
        self._samples.values["d2h_bytes"] = float(self._d2h)
        await self._client.close()
        return self._samples

    async def _pair(self) -> None:
        """From pages that nobody needed, into free memory, after an idle victim, then after a busy one; dropped if
        memcpy drifts meanwhile."""
        before = await asyncio.to_thread(memcpy.seconds_per_byte, SAMPLE)
        hot = await self._hot()
        alone, free = await self._free()
        self._share("copied_share_free")
        idle, full = await self._after_victim(busy=False)
        self._share("copied_share_full")
        busy, _ = await self._after_victim(busy=True)
        after = await asyncio.to_thread(memcpy.seconds_per_byte, SAMPLE)
        if not self._kept(before, after):
            self._samples.dropped += 1
            return
        yardstick = (before + after) / 2 * self._weights
        self._samples.hot.append(hot / yardstick)
        self._samples.free.append(free / yardstick)
        self._samples.full.append(full / yardstick)
        self._samples.switch.append(idle / alone)
        self._samples.switch_busy.append(busy / alone)

    def _kept(self, before: float, after: float) -> bool:
        return not self._judged or figures.steady(before, after)

    def _share(self, name: str) -> None:
        """Of the weights, how much the last wake copied: the rest lay in pages that nobody had needed."""
        self._samples.values[name] = round(self._restored / self._weights, 2)

    async def _hot(self) -> float:
        """Added TTFT when nobody has needed the subject's pages since it left."""
        await self._asleep(OTHER)
        await self._resident(SUBJECT)
        await self._asleep(SUBJECT)
        await asyncio.sleep(SETTLE_S)
        _, added = await self._wake()
        return added

    async def _free(self) -> tuple[float, float]:
        """Seconds of the restore alone (order to resident), and added TTFT, with nobody else on the device; the other
        has been there meanwhile. It begins as late after what was before as a switch does (`_after_victim`)."""
        await self._asleep(SUBJECT)
        await self._resident(OTHER)
        await self._asleep(OTHER)
        await asyncio.sleep(SETTLE_S)
        measured = await self._wake()
        self._wakes.append(self._last_wake)
        return measured

    async def _after_victim(self, *, busy: bool) -> tuple[float, float]:
        """Seconds from the victim's order to the subject's residency, and added TTFT, when the other must leave."""
        await self._resident(OTHER)
        await asyncio.sleep(SETTLE_S)
        if not busy:
            measured = await self._wake()
            self._wakes.append(self._last_wake)
            self._d2h += self._audit.residency(OTHER).d2h
            return measured
        preempted = await self._preemptions(OTHER)
        started = asyncio.Event()
        writing = asyncio.create_task(ask(self._client, self._prompt(OTHER, 64), started))
        await started.wait()
        measured = await self._wake()
        await writing
        lost = 64 * (await self._preemptions(OTHER) - preempted)
        self._samples.values["recomputed_tokens"] = self._samples.values.get("recomputed_tokens", 0.0) + lost
        return measured

    async def _wake(self) -> tuple[float, float]:
        """Ask the sleeping subject, then ask it again: (first order to resident, TTFT asleep − TTFT awake)."""
        first = len(self._audit.orders)
        seen = len(self._audit.history[SUBJECT])
        asleep = await self._ask(SUBJECT)
        await self._audit.until(lambda: self._arrivals(seen) != [], LIMIT_S)
        arrived = self._arrivals(seen)[0]
        self._restored = arrived.residency.restored
        ordered = self._audit.orders[first].at
        self._last_wake = asleep.ttft_s
        awake = await self._ask(SUBJECT)
        return arrived.at - ordered, asleep.ttft_s - awake.ttft_s

    async def _keep_or_compute(self) -> None:
        """One pair of these, with a calibrator of its own."""
        before = await asyncio.to_thread(memcpy.seconds_per_byte, SAMPLE)
        computed, kept = await self._keep()
        after = await asyncio.to_thread(memcpy.seconds_per_byte, SAMPLE)
        if not kept:  # the engine found that keeping is the dearer way
            self._samples.notes.append("KV was not kept")
        elif self._kept(before, after):
            self._samples.recompute_over_keep.append(computed / kept)
        else:
            self._samples.notes.append("a pair of recompute_over_keep was dropped because memcpy drifted")

    async def _keep(self) -> tuple[float, float]:
        """A long prompt is computed, then found in the cache, then kept while the subject sleeps: seconds of computing
        it, and of moving its KV out and back (0: it was not kept)."""
        await self._ask(SUBJECT)
        prompt = self._prompt(SUBJECT, 1, LONG)
        before = await self._metric(SUBJECT, "vllm:prompt_tokens_total")
        computed = await ask(self._client, prompt)
        tokens = await self._metric(SUBJECT, "vllm:prompt_tokens_total") - before
        found = await ask(self._client, prompt)
        await self._asleep(SUBJECT)
        left, seen = self._audit.residency(SUBJECT), len(self._audit.history[SUBJECT])
        await ask(self._client, prompt)
        await self._audit.until(lambda: self._arrivals(seen) != [], LIMIT_S)
        back = self._arrivals(seen)[0].residency
        if not (left.kv_saved and back.restored):
            return computed.ttft_s - found.ttft_s, 0.0
        kept = tokens * await self._token_bytes()
        moved = kept * (_seconds(left, "save_kv") / left.kv_saved + _seconds(back, "copy") / back.restored)
        self._samples.values |= {"kv_bytes": kept, "kv_keep_ms": moved * 1e3, "kv_saved_bytes": float(left.kv_saved)}
        return computed.ttft_s - found.ttft_s, moved

    async def _token_bytes(self) -> float:
        """KV of one token of the subject."""
        line = (await self._metrics(SUBJECT, "vllm:cache_config_info"))[0]
        labels = dict(re.findall(r'(\w+)="([^"]*)"', line))
        return KV_CACHE / (int(labels["num_gpu_blocks"]) * int(labels["block_size"]))

    def _arrivals(self, seen: int) -> list[Seen]:
        """When the subject became resident, since so many residencies; a busy neighbour may have it leave at once."""
        return [s for s in self._audit.history[SUBJECT][seen:] if s.residency.phase is Phase.RESIDENT]

    async def _cold(self) -> None:
        """kill -9, and the seconds until the engine, started again alone, gives its first token."""
        spec = self._audit.specs[SUBJECT]
        os.kill(spec.pid, signal.SIGKILL)
        task = self._progress.add_task("one cold start", total=None)
        await self._audit.until(lambda: self._back(spec.holder.nonce), RESTART_LIMIT_S)
        self._progress.remove_task(task)
        first = await self._ask(SUBJECT)
        cold = self._audit.specs[SUBJECT].cold_start + first.ttft_s
        self._samples.cold_over_wake = [cold / wake for wake in self._wakes]
        self._samples.notes.append(
            f"cold start to first token {cold:.1f} s, wake to first token {statistics.median(self._wakes) * 1e3:.0f} ms"
        )

    def _back(self, old: str) -> bool:
        spec = self._audit.specs.get(SUBJECT)
        return spec is not None and spec.holder.nonce != old and spec.cold_start > 0

    def _moved_share(self) -> float:
        return min(1.0, device_bytes(self._audit.specs[SUBJECT].pid) / self._weights)

    async def _asleep(self, model: str) -> None:
        if self._audit.phase(model) is not Phase.OFFLOADED:
            await self._admin(model, "sleep")
        await self._settled(model, Phase.OFFLOADED)

    async def _resident(self, model: str) -> None:
        """An answer may come before its model's restore has ended, so it is waited for."""
        await self._ask(model)
        await self._settled(model, Phase.RESIDENT)

    async def _settled(self, model: str, phase: Phase) -> None:
        await self._audit.until(lambda: self._audit.phase(model) is phase, LIMIT_S)

    def _prompt(self, model: str, tokens: int, words: int = 0) -> Prompt:
        """Never seen before; short where a wake is measured: the prefill of a long one is in both sides of each ratio
        and says nothing of a wake."""
        self._asked += 1
        return Prompt(model, f"{self._asked} {time.time_ns() % 1_000_000:06}" + " word" * words, tokens)

    async def _ask(self, model: str) -> Answer:
        return await ask(self._client, self._prompt(model, 4))

    async def _preemptions(self, model: str) -> float:
        return await self._metric(model, "vllm:num_preemptions_total")

    async def _metric(self, model: str, name: str) -> float:
        return sum(float(line.rsplit(" ", 1)[1]) for line in await self._metrics(model, name))

    async def _metrics(self, model: str, name: str) -> list[str]:
        url = f"{self._audit.specs[model].url}/metrics"
        async with aiohttp.ClientSession() as http, http.get(url) as reply:
            return [line for line in (await reply.text()).splitlines() if line.startswith(name)]

    async def _admin(self, model: str, action: str) -> None:
        url = f"{self._found.admin}/v1/models/{model}/{action}"
        async with aiohttp.ClientSession(raise_for_status=True) as http, http.post(url):
            pass


def _seconds(residency: Residency, name: str) -> float:
    return sum(step.seconds for step in residency.steps if step.name == name)
