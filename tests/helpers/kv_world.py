"""A prefill engine and a decode engine with real cache memory, in virtual time, with everything that can go wrong.

The two state machines, the planner, the layouts and the wire format are the product's; threads, sockets and vLLM are
played. Every byte that a block holds when it is called ready is compared with what prefill wrote, and nobody may write
into a block that was given back.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from tests.helpers.kv import KINDS, Cache, cache, request_bytes
from transfer.kv import messages
from transfer.kv.boxes import boxes, runs, split
from transfer.kv.layout import unit_tokens
from transfer.kv.messages import Say, Terms
from transfer.kv.plan import heads_of
from transfer.kv.sink import Action, Cancel, Fetch, Finished, Send, Sink, Wanted
from transfer.kv.source import Released, Source

TERMS = Terms(first_s=6.0, lease_s=3.0, beat_s=0.3, patience_s=1.5, limit_s=10.0)
LAYERS = 3
POOL = 12
STEPS = 100_000


class Violated(AssertionError):
    """Something that must never happen did."""


@dataclass
class Pool:
    """Block ids of an engine; free ones hold a pattern that nobody may change."""

    free: list[int] = field(default_factory=lambda: list(range(POOL)))

    def take(self, count: int, rng: random.Random) -> list[int]:
        rng.shuffle(self.free)
        taken, self.free = self.free[:count], self.free[count:]
        return taken


@dataclass
class Rank:
    """One rank of an engine: layers [lo, hi) of the model and the heads of `rank`."""

    side: Cache
    stage: int
    rank: int
    layers: range
    heads: range
    memory: list[np.ndarray]  # type: ignore[type-arg]

    def cells(self, layer: int, blocks: list[int]) -> np.ndarray:  # type: ignore[type-arg]
        return request_bytes(self.side, blocks, 10**6)


@dataclass
class Job:
    fetch: Fetch
    cancelled: bool = False


@dataclass
class Request:
    name: str
    tokens: int
    content: np.ndarray  # type: ignore[type-arg]
    """[layer, plane, token, head, byte]."""
    prefill_blocks: list[int]
    epoch: str
    unreleased: set[int]
    unoffered: set[int]
    """Prefill ranks that have not heard of it: they hear of what happens to its blocks after that, in order."""
    decode_blocks: list[int] = field(default_factory=list)
    unfinished: set[int] = field(default_factory=set)
    ready: set[int] = field(default_factory=set)
    ended: str = ""
    outcomes: list[str] = field(default_factory=list)


class World:
    """One history, from a seed."""

    def __init__(self, seed: int, *, faults: bool = True) -> None:
        self.rng = random.Random(seed)
        self.faulty = faults
        self.faults = False
        self.now = 0.0
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self.steps = 0
        self.requests: dict[str, Request] = {}
        self.story: list[str] = []
        self.cut: set[tuple[int, int]] = set()
        self.asleep = False
        self._shape()
        self._start_prefill()
        self._start_decode()

    # ---- what there is

    def _shape(self) -> None:
        rng = self.rng
        family = rng.choice(["dense", "dense", "packed", "latent"])
        self.mla = family == "latent"
        self.heads = 1 if self.mla else rng.choice([1, 2, 4, 6])
        fitting = [tp for tp in range(1, 7) if self.heads % tp == 0 or tp % self.heads == 0]
        self.prefill_tp, self.decode_tp = rng.choice(fitting), rng.choice(fitting)
        tokens = rng.choice([2, 4])
        self.block_tokens = (tokens, tokens if family == "packed" else rng.choice([tokens, 2, 4]))
        self.kinds = [rng.choice(KINDS) if family == "dense" else family for _ in range(2)]
        self.prefill_pp, self.decode_pp = rng.choice([1, 1, 2]), rng.choice([1, 1, 2])

    def _ranks(self, which: int, tp: int, pp: int) -> list[Rank]:
        made = []
        for stage in range(pp):
            lo, hi = stage * LAYERS // pp, (stage + 1) * LAYERS // pp
            for rank in range(tp):
                heads = heads_of(tp, self.heads, rank)
                side = cache(self.kinds[which], POOL, self.block_tokens[which], len(heads), 2)
                memory = [self._noise(side.layout.extent) for _ in range(hi - lo)]
                made.append(Rank(side, stage, rank, range(lo, hi), heads, memory))
        return made

    def _start_prefill(self) -> None:
        self.epoch = f"{self.rng.getrandbits(128):032x}"
        self.prefill_pool = Pool()
        self.prefill = self._ranks(0, self.prefill_tp, self.prefill_pp)
        self.sources = [
            Source(self.epoch, self.prefill_tp, rank.rank, self.heads, mla=self.mla, terms=TERMS)
            for rank in self.prefill
        ]
        self.draining = False
        self.coming: set[int] = set()
        """Prefill ranks not all of whose memory is back."""

    def _start_decode(self) -> None:
        self.life = getattr(self, "life", 0) + 1
        self.decode_pool = Pool()
        self.decode = self._ranks(1, self.decode_tp, self.decode_pp)
        self.sinks = [Sink(TERMS) for _ in self.decode]
        self.jobs: dict[tuple[int, str, int, int], Job] = {}
        self.shadow = [[layer.copy() for layer in rank.memory] for rank in self.decode]

    def _noise(self, size: int) -> np.ndarray:  # type: ignore[type-arg]
        return np.frombuffer(self.rng.randbytes(size), dtype=np.uint8).copy()

    # ---- time

    def at(self, delay: float, do: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._queue, (self.now + delay, self._count, do))

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self._queue and self._queue[0][0] <= end:
            self.now, _, do = heapq.heappop(self._queue)
            self.steps += 1
            if self.steps > STEPS:
                raise Violated("it goes in circles")
            do()
        self.now = end

    def _wake(self, machine: Source | Sink, act: Callable[[], None]) -> None:
        """Tick when the machine says that it has something to do."""
        due = machine.due
        if due is not None:
            self.at(max(0.0, due - self.now), act)

    # ---- prefill

    def request(self) -> None:
        """Prefill one more request, where there is room."""
        name = f"{self.rng.getrandbits(128):032x}"
        tokens = self.rng.randint(1, 3 * self.block_tokens[0])
        count = -(-tokens // self.block_tokens[0])
        if self.draining or len(self.prefill_pool.free) < count:
            return
        blocks = self.prefill_pool.take(count, self.rng)
        some = self.prefill[0].cells(0, blocks)
        shape = (LAYERS, some.shape[0], some.shape[1], self.heads, some.shape[3])
        content = self._noise(int(np.prod(shape))).reshape(shape)
        for rank in self.prefill:
            for layer in rank.layers:
                at = rank.cells(layer, blocks)
                rank.memory[layer - rank.layers.start][at] = content[layer][:, :, list(rank.heads)]
        everyone = range(len(self.prefill))
        made = Request(name, tokens, content, blocks, self.epoch, set(everyone), set(everyone))
        self.requests[name] = made
        self._tell(f"offer {name[:4]} {tokens} tokens")
        for at in range(len(self.prefill)):
            self.at(self.rng.choice([0.0, 0.01, 0.2]), lambda at=at: self._offer(made, at))  # type: ignore[misc]
        self.at(self.rng.choice([0.0, 0.05, 1.0]), lambda: self._begin(made))

    def _offer(self, made: Request, at: int) -> None:
        if made.epoch == self.epoch:
            made.unoffered.discard(at)
            if at in self.coming:
                self._tell(f"offer {made.name[:4]} waits for memory")
            self.sources[at].offer(made.name, made.prefill_blocks, self.now)
            self._source_wake(at)

    def _source_wake(self, at: int) -> None:
        source = self.sources[at]

        def tick() -> None:
            if self.sources[at] is source and source.due is not None and source.due <= self.now:
                self._released(at, source.tick(self.now))
                self._source_wake(at)

        self._wake(source, tick)

    def _released(self, at: int, released: list[Released]) -> None:
        for request, outcome in released:
            made = self.requests[request]
            if at not in made.unreleased:
                raise Violated(f"prefill rank {at} released {request} twice")
            made.unreleased.discard(at)
            made.outcomes.append(outcome)
            if not made.unreleased:
                self._scribble(self.prefill, made.prefill_blocks)
                self.prefill_pool.free += made.prefill_blocks
        self._maybe_sleep()

    def _maybe_sleep(self) -> None:
        """What requests hold is saved. It computes again before all of its memory is back."""
        if not self.draining or not all(source.idle for source in self.sources):
            return
        self.draining, self.coming = False, set(range(len(self.sources)))
        self._tell("prefill sleeps and wakes")
        live = [made for made in self.requests.values() if made.unreleased and made.epoch == self.epoch]
        saved = {block for made in live for block in made.prefill_blocks}
        for rank in self.prefill:
            self._scribble([rank], [block for block in range(POOL) if block not in saved])
        for at in self.coming:
            self.at(self.rng.choice([0.0, 0.05, 2.0]), lambda at=at, epoch=self.epoch: self._prefill_is_back(at, epoch))  # type: ignore[misc]

    def _prefill_is_back(self, at: int, epoch: str) -> None:
        if epoch == self.epoch:
            self.coming.discard(at)
            self.sources[at].resume(self.now)
            self._source_wake(at)

    def _scribble(self, ranks: list[Rank], blocks: list[int]) -> None:
        for rank in ranks:
            for memory in rank.memory:
                at = rank.cells(0, blocks)
                memory[at] = self._noise(at.size).reshape(at.shape)

    # ---- decode

    def _begin(self, made: Request) -> None:
        unit = unit_tokens(self.prefill[0].side.layout, self.decode[0].side.layout)
        count = -(-made.tokens // self.block_tokens[1])
        if self.asleep or len(self.decode_pool.free) < count:
            self.at(0.5, lambda: self._begin(made))
            return
        made.decode_blocks = self.decode_pool.take(count, self.rng)
        self._check_untouched(made.decode_blocks)
        made.unfinished = set(range(len(self.decode)))
        made.ready = set(range(count))
        life = self.life
        for at, rank in enumerate(self.decode):
            actions = self.sinks[at].begin(self._wanted(made, rank, unit), self.now)
            self._act(at, actions)
            self._sink_wake(at)
        if self.life != life:
            raise Violated("a decode engine died while it began")

    def _wanted(self, made: Request, rank: Rank, unit: int) -> Wanted:
        planes = rank.side.layout
        slots = 1 if planes.packed else unit
        cell = len(planes.planes) * slots * planes.slot_bytes
        stages = []
        for stage in range(self.prefill_pp):
            lo, hi = stage * LAYERS // self.prefill_pp, (stage + 1) * LAYERS // self.prefill_pp
            first, last = max(lo, rank.layers.start), min(hi, rank.layers.stop)
            stages.append((first - rank.layers.start, max(first, last) - rank.layers.start))
        return Wanted(
            request=made.name,
            epoch=made.epoch,
            prefill_tp=self.prefill_tp,
            decode_tp=self.decode_tp,
            decode_rank=rank.rank,
            num_kv_heads=self.heads,
            units=-(-made.tokens // unit),
            cell_bytes=(cell,) * len(rank.layers),
            stages=tuple(stages),
            src_block_units=self.block_tokens[0] // unit,
            dst_block_units=self.block_tokens[1] // unit,
            decode_pp=self.decode_pp,
            decode_stage=rank.stage,
            mla=self.mla,
        )

    def _sink_wake(self, at: int) -> None:
        sink = self.sinks[at]

        def tick() -> None:
            if self.sinks[at] is sink and sink.due is not None and sink.due <= self.now:
                self._act(at, sink.tick(self.now))
                self._sink_wake(at)

        self._wake(sink, tick)

    def _act(self, at: int, actions: list[Action]) -> None:
        for action in actions:
            if isinstance(action, Send):
                self._send(at, action.peer, action.say)
            elif isinstance(action, Fetch):
                self._fetch(at, action)
            elif isinstance(action, Cancel):
                for job in self.jobs.values():
                    job.cancelled |= job.fetch[:2] == action[:2]
            else:
                self._finished(at, action)

    def _finished(self, at: int, verdict: Finished) -> None:
        made = self.requests[verdict.request]
        if at not in made.unfinished:
            raise Violated(f"decode rank {at} finished {verdict.request} twice")
        made.unfinished.discard(at)
        if sorted(verdict.ready + verdict.failed) != list(range(len(made.decode_blocks))):
            raise Violated(f"{verdict} forgets blocks")
        if verdict.failed and not verdict.reasons:
            raise Violated(f"{verdict} gives no reason")
        made.ready &= set(verdict.ready)
        self._check_ready(made, self.decode[at], verdict.ready)
        if not made.unfinished:
            made.ended = "whole" if len(made.ready) == len(made.decode_blocks) else "recompute"
            self._tell(f"{made.ended} {made.name[:4]} {' | '.join(verdict.reasons)}")
            self._give_back(made)

    def _check_ready(self, made: Request, rank: Rank, ready: tuple[int, ...]) -> None:
        unit = unit_tokens(self.prefill[0].side.layout, rank.side.layout)
        per_block = 1 if rank.side.layout.packed else self.block_tokens[1]
        known = -(-made.tokens // unit) * (1 if rank.side.layout.packed else unit)
        rows = [row for at in ready for row in range(at * per_block, min((at + 1) * per_block, known))]
        for layer in rank.layers:
            at = rank.cells(layer, made.decode_blocks)[:, rows]
            got = rank.memory[layer - rank.layers.start][at]
            if not np.array_equal(got, made.content[layer][:, rows][:, :, list(rank.heads)]):
                raise Violated(f"a block of {made.name} is called ready and holds other bytes")

    def _give_back(self, made: Request) -> None:
        self._scribble(self.decode, made.decode_blocks)
        for rank, shadow in zip(self.decode, self.shadow, strict=True):
            at = rank.cells(0, made.decode_blocks)
            for memory, old in zip(rank.memory, shadow, strict=True):
                old[at] = memory[at]
        self.decode_pool.free += made.decode_blocks

    def _check_untouched(self, blocks: list[int]) -> None:
        for rank, shadow in zip(self.decode, self.shadow, strict=True):
            at = rank.cells(0, blocks)
            for memory, old in zip(rank.memory, shadow, strict=True):
                if not np.array_equal(memory[at], old[at]):
                    raise Violated("somebody wrote into a block that was given back")

    # ---- between them

    def _lost(self, at: int, peer: int) -> bool:
        return (at, peer) in self.cut or (self.faults and self.rng.random() < 0.05)

    def _send(self, at: int, peer: int, say: Say) -> None:
        copies = 0 if self._lost(at, peer) else 2 if self.faults and self.rng.random() < 0.05 else 1
        data = messages.encode(say)
        for _ in range(copies):
            self.at(self._delay(), lambda: self._heard(at, peer, data))

    def _heard(self, at: int, peer: int, data: bytes) -> None:
        answer, released = self.sources[peer].receive(messages.decode_say(data), self.now)
        self._released(peer, released)
        self._source_wake(peer)
        sink = self.sinks[at]
        if self._lost(at, peer):
            return
        reply = messages.encode(answer)
        self.at(self._delay(), lambda: self._answered(at, peer, sink, reply))

    def _answered(self, at: int, peer: int, sink: Sink, reply: bytes) -> None:
        if self.sinks[at] is sink:
            self._act(at, sink.receive(peer, messages.decode_answer(reply), self.now))
            self._sink_wake(at)

    def _delay(self) -> float:
        return self.rng.choice([0.001, 0.002, 0.01, 0.3 if self.faults else 0.01])

    def _fetch(self, at: int, fetch: Fetch) -> None:
        job = Job(fetch)
        self.jobs[at, fetch.request, fetch.peer, fetch.layer] = job
        rank, peer = self.decode[at], self.prefill[fetch.peer]
        made = self.requests[fetch.request]
        sides = (peer.side.layout, rank.side.layout)
        copies = [box for pull in fetch.pulls for box in boxes(pull, *sides, made.prefill_blocks, made.decode_blocks)]
        total = sum(box.bytes for box in copies)
        chunks = split(copies, max(1, total // self.rng.randint(1, 4)))
        self._chunk(at, self.life, made.epoch, job, chunks, 0)

    def _chunk(self, at: int, life: int, epoch: str, job: Job, chunks: list[list], moved: int) -> None:  # type: ignore[type-arg]
        def go() -> None:
            if self.life != life:
                return  # the process is dead, and its threads with it
            error = self._trouble(at, epoch, job)
            if error and self.rng.random() < 0.5:
                self._ended(at, job, moved, error)
                return
            wrote = self._copy(at, job.fetch, chunks[0], flip=error == "damaged") if epoch == self.epoch else 0
            if error or len(chunks) == 1:
                self._ended(at, job, moved + wrote, error)
            else:
                self._chunk(at, life, epoch, job, chunks[1:], moved + wrote)

        self.at(self.rng.choice([0.001, 0.01, 0.4 if self.faults else 0.02]), go)

    def _trouble(self, at: int, epoch: str, job: Job) -> str:
        if epoch != self.epoch or (at, job.fetch.peer) in self.cut:
            return "the peer is gone"
        if job.cancelled:
            return "cancelled"
        return self.rng.choice(["damaged", "reset"]) if self.faults and self.rng.random() < 0.02 else ""

    def _copy(self, at: int, fetch: Fetch, chunk: list, *, flip: bool) -> int:  # type: ignore[type-arg]
        rank, peer = self.decode[at], self.prefill[fetch.peer]
        to = rank.memory[fetch.layer]
        whence = peer.memory[rank.layers.start + fetch.layer - peer.layers.start]
        for run in runs(chunk):
            to[run.dst : run.dst + run.length] = whence[run.src : run.src + run.length] ^ (1 if flip else 0)
        return sum(box.bytes for box in chunk)

    def _ended(self, at: int, job: Job, moved: int, error: str) -> None:
        fetch = job.fetch
        del self.jobs[at, fetch.request, fetch.peer, fetch.layer]
        self._act(at, self.sinks[at].fetched(fetch.request, fetch.peer, fetch.layer, moved, error, self.now))
        self._sink_wake(at)

    # ---- faults

    def trouble(self) -> None:
        """One thing goes wrong."""
        kind = self.rng.choice([self._kill_prefill, self._kill_decode, self._free_early, self._free_early, self._abort])
        kind = self.rng.choice([kind, kind, self._cut, self._drain, self._sleep_decode])
        self._tell(kind.__name__)
        kind()

    def _kill_prefill(self) -> None:
        for made in self.requests.values():
            if made.epoch == self.epoch:
                made.unreleased.clear()
        self._start_prefill()

    def _kill_decode(self) -> None:
        for made in self.requests.values():
            if made.unfinished:
                made.unfinished.clear()
                made.ended = "decode died"
        self._start_decode()
        self.asleep = False

    def _free_early(self) -> None:
        held = [made for made in self.requests.values() if made.unreleased and made.epoch == self.epoch]
        held = [made for made in held if not made.unoffered]
        if held:
            made = self.rng.choice(held)
            some = self.rng.sample(made.prefill_blocks, self.rng.randint(1, len(made.prefill_blocks)))
            self._scribble(self.prefill, some)
            for source in self.sources:
                source.freed(some)

    def _abort(self) -> None:
        pulling = [made for made in self.requests.values() if made.unfinished]
        if pulling:
            made = self.rng.choice(pulling)
            for at in sorted(made.unfinished):
                self._act(at, self.sinks[at].abort(made.name, self.now))

    def _cut(self) -> None:
        pair = (self.rng.randrange(len(self.decode)), self.rng.randrange(len(self.prefill)))
        self.cut.add(pair)
        self.at(self.rng.choice([0.2, 2.0, 5.0]), lambda: self.cut.discard(pair))

    def _drain(self) -> None:
        if self.coming:
            return
        self.draining = True
        ended = [source.drain(self.now, self.now + 1.0) for source in self.sources]
        for at, released in enumerate(ended):
            self._released(at, released)
            self._source_wake(at)
        self._maybe_sleep()

    def _sleep_decode(self) -> None:
        """All pulls are aborted; memory goes as soon as no sink is busy, and no earlier."""
        self.asleep = True
        for at, sink in enumerate(self.sinks):
            self._act(at, sink.abort_all(self.now))
        self._await_quiet(self.life)

    def _await_quiet(self, life: int) -> None:
        if self.life != life:
            return
        if any(sink.busy for sink in self.sinks):
            self.at(0.05, lambda: self._await_quiet(life))
            return
        if self.jobs:
            raise Violated("no sink is busy, and yet something is being fetched")
        self.asleep = False

    # ---- a history

    def _tell(self, line: str) -> None:
        self.story.append(f"{self.now:7.3f} {line}")

    def live(self, seconds: float) -> None:
        """Requests all the time, and troubles where there are faults; then quiet, one more request, and the end."""
        self.faults = self.faulty
        for _ in range(int(seconds * 2)):
            self.at(self.rng.uniform(0, seconds), self.request)
        for _ in range(int(seconds) if self.faulty else 0):
            self.at(self.rng.uniform(0, seconds), self.trouble)
        self.run(seconds)
        self.faults = False
        self.cut.clear()
        self.run(TERMS.limit_s + 2 * TERMS.first_s)
        before = set(self.requests)
        self.request()
        self.last = next(iter(set(self.requests) - before), "")
        self.run(TERMS.limit_s + 2 * TERMS.first_s)

    def check_baseline(self) -> None:
        """Nothing is left on either side, and every request has ended."""
        left = [made.name for made in self.requests.values() if not made.ended or made.unreleased or made.unfinished]
        if left:
            raise Violated(f"not ended: {left}")
        if not all(source.idle for source in self.sources) or any(sink.pulls for sink in self.sinks) or self.jobs:
            raise Violated("a side remembers what has ended")
        if len(self.prefill_pool.free) != POOL or len(self.decode_pool.free) != POOL:
            raise Violated("blocks are lost")
        self._check_untouched(list(range(POOL)))
