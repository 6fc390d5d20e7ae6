"""Pairs in the order A B A B, with the memcpy calibrator beside each."""

from __future__ import annotations

import ctypes
import json
import os
import secrets
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field

import msgspec
from rich.progress import Progress

from benchmarks import figures
from benchmarks.calm import Calm
from benchmarks.kv_pull.goals import CASES
from benchmarks.kv_pull.pages import huge, shared, warm
from benchmarks.kv_pull.peer import LOCAL, Ports, laid_out
from benchmarks.kv_pull.work import MIB, Lanes, Work, contiguous, copier, descriptors, heterogeneous
from transfer.kv.mapped import MappedReader, Part
from transfer.kv.messages import Terms
from transfer.kv.mooncake import MooncakeReader, make_engine
from transfer.kv.reader import Span
from transfer.kv.tcp import SERVICE, TcpReader
from transfer.transports.channel import Channel
from transfer.transports.deadline import Deadline
from transfer.transports.dial import dial
from transfer.transports.trust import Trust
from transfer.transports.window import Window

TICK = 64 * MIB
LANES = Terms().lanes


class Cost(msgspec.Struct, frozen=True):
    """Seconds by the clock, and of processors, both processes together."""

    wall: float
    cpu: float


@dataclass
class Samples:
    pairs: dict[str, list[float]] = field(default_factory=dict)
    values: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)

    def worse(self, name: str, kinds: list[str]) -> None:
        """Report the worse of several as `name`."""
        kept = [self.pairs[kind] for kind in kinds if self.pairs[kind]]
        self.pairs[name] = max(kept, key=lambda pairs: figures.ratio(pairs).median) if kept else []


@dataclass
class Side:
    """The other process, and readers of its memory."""

    process: subprocess.Popen[str]
    ports: Ports
    tcp: Lanes
    mapped: Lanes
    regions: dict[int, Part]


@contextmanager
def side(sizes: Sequence[int]) -> Iterator[Side]:
    """A prefill process with regions of these sizes, called 0, 1, …"""
    key = secrets.token_hex(32)
    regions = {handle: Part(*part) for handle, part in enumerate(laid_out(sizes))}
    with shared(sum(sizes)) as chunks, closing(Window(chunks)) as window:
        command = [sys.executable, "-m", "benchmarks.kv_pull.peer", json.dumps(chunks)]
        descriptors = [descriptor for descriptor, _ in chunks]
        process = subprocess.Popen(
            command, pass_fds=descriptors, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(f"{key}\n{msgspec.json.encode(list(sizes)).decode()}\n")
            process.stdin.flush()
            ports = msgspec.json.decode(process.stdout.readline(), type=Ports)
            trust = Trust(bytes.fromhex(key))

            def connect(deadline: Deadline) -> Channel:
                return dial(LOCAL, ports.tcp, trust, SERVICE, deadline)

            with (
                Lanes([TcpReader(connect) for _ in range(LANES)]) as tcp,
                Lanes([MappedReader(window, regions) for _ in range(LANES)]) as mapped,
            ):
                yield Side(process, ports, tcp, mapped, regions)
        finally:
            process.stdin.close()
            process.wait(30)


class Bench:
    """`rounds` pairs of each kind, for each of `sizes` (bytes). Where they are not `judged`, none is dropped."""

    def __init__(self, rounds: int, sizes: list[int], progress: Progress, *, judged: bool) -> None:
        self._rounds, self._sizes, self._progress, self._judged = rounds, sizes, progress, judged
        self.samples = Samples()
        self._task = progress.add_task("pairs", total=rounds * (len(sizes) * (len(CASES) + 1) + 1))

    def run(self) -> Samples:
        with warm(TICK) as one, warm(TICK) as other:
            self._tick = copier(one, other, TICK)
            for size in self._sizes:
                for name, sizes in CASES.items():
                    self._hetero(name, heterogeneous(*sizes, size))
                self._mooncake(heterogeneous(4, 2, size))
            self._local(heterogeneous(4, 2, max(self._sizes)))
        self._conclude()
        return self.samples

    def _hetero(self, name: str, work: Work) -> None:
        plain = contiguous(work)
        with side(work.regions) as there, side(plain.regions) as alike, warm(max(work.into, plain.into)) as into:
            key = f"hetero_over_contiguous_{name}_{work.bytes // MIB}mib"
            both = [there, alike]
            self._pairs(key, both, lambda: there.tcp.pull(work, into), lambda: alike.tcp.pull(plain, into))
            sent, stand_for = descriptors(work)
            self.samples.values[f"descriptors_per_request_{name}_{work.bytes // MIB}mib"] = sent
            self.samples.values[f"runs_per_request_{name}_{work.bytes // MIB}mib"] = stand_for

    def _local(self, work: Work) -> None:
        with side(work.regions) as there, warm(work.into) as into, warm(work.bytes) as source:
            plain = copier(into, source, work.bytes)
            self._pairs("local_over_memcpy", [there], plain, lambda: there.mapped.pull(work, into), by_place=True)

    def _mooncake(self, work: Work) -> None:
        with side(work.regions) as there, warm(work.into) as into, warm(work.into) as check:
            if there.ports.mooncake is None:
                self._progress.advance(self._task, self._rounds)
                return
            regions = {handle: Span(there.ports.address + at, size) for handle, (at, size) in there.regions.items()}
            peer = f"{LOCAL}:{there.ports.mooncake}"
            size = work.bytes // MIB
            with Lanes(
                [MooncakeReader(lambda: make_engine(LOCAL), peer, regions, [into]) for _ in range(LANES)]
            ) as other:
                self._same(work, [there.tcp, other, there.mapped], into, check)
                costs = self._pairs(
                    f"tcp_over_mooncake_{size}mib",
                    [there],
                    lambda: other.pull(work, into),
                    lambda: there.tcp.pull(work, into),
                )
            self.samples.pairs[f"cpu_over_mooncake_{size}mib"] = [b.cpu / a.cpu for a, b in costs]

    def _same(self, work: Work, ways: list[Lanes], into: Span, check: Span) -> None:
        """Every transport brings the same bytes; also warms each up."""
        for at, way in enumerate(ways):
            ctypes.memset(into.address, 0, into.size)
            way.pull(work, into)
            found = ctypes.string_at(into.address, into.size)
            if at and found != ctypes.string_at(check.address, check.size):
                raise RuntimeError(f"{type(way.readers[0]).__name__} brought other bytes")
            ctypes.memmove(check.address, into.address, into.size)

    def _pairs(
        self, name: str, sides: Sequence[Side], a: Callable[[], None], b: Callable[[], None], *, by_place: bool = False
    ) -> list[tuple[Cost, Cost]]:
        """Ratios a ÷ b of the clock go to `name`; both costs of the pairs that count come back. `by_place`: also apart
        for whether both processors lay behind one cache."""
        a(), b()
        kept: list[tuple[Cost, Cost]] = []
        ratios: dict[str, list[float]] = {name: []}
        calm = Calm([os.getpid(), *(side.process.pid for side in sides)])
        for _ in range(self._rounds):
            before = calm.look(self._calibrate())
            b()  # so that each comes behind the other, and neither behind the calibrator
            costs = self._cost(sides[0], a), self._cost(sides[0], b)
            after = calm.look(self._calibrate())
            if self._judged and (fault := before.fault(after)):
                self.samples.dropped[fault] += 1
            else:
                kept.append(costs)
                place = "one_cache" if after.one_cache else "two_caches"
                for key in (name, f"{name}_{place}") if by_place else (name,):
                    ratios.setdefault(key, []).append(costs[0].wall / costs[1].wall)
            self._progress.advance(self._task)
        self.samples.pairs.update(ratios)
        return kept

    def _calibrate(self) -> float:
        """Seconds per byte of one thread's memcpy."""
        times = []
        for _ in range(3):
            begun = time.perf_counter()
            self._tick()
            times.append(time.perf_counter() - begun)
        return min(times) / TICK

    @staticmethod
    def _cost(there: Side, work: Callable[[], None]) -> Cost:
        cpu, begun = _cpu(there.process.pid), time.perf_counter()
        work()
        return Cost(time.perf_counter() - begun, _cpu(there.process.pid) - cpu)

    def _conclude(self) -> None:
        pairs = self.samples.pairs
        for name in CASES:
            self.samples.worse(
                f"hetero_over_contiguous_{name}",
                [key for key in pairs if key.startswith(f"hetero_over_contiguous_{name}_")],
            )
        for name, worst in (("tcp_over_mooncake", min), ("cpu_over_mooncake", max)):
            kinds = [key for key in pairs if key.startswith(f"{name}_") and pairs[key]]
            if kinds:
                pairs[name] = worst((pairs[key] for key in kinds), key=lambda kept: figures.ratio(kept).median)
            else:
                self.samples.notes.append(f"{name}: Mooncake is not installed here (extra `mooncake`, libibverbs1)")
        for name in ("descriptors_per_request", "runs_per_request"):
            most = [value for key, value in self.samples.values.items() if key.startswith(name)]
            self.samples.values[name] = max(most)
        if not huge():
            self.samples.notes.append("this machine gives no huge pages: device pages are of 4 KiB")
        for fault, count in self.samples.dropped.most_common():
            self.samples.notes.append(f"{count} pairs dropped: {fault}")


def _cpu(pid: int) -> float:
    """Seconds of processors that this process and `pid` have used (clock_getcpuclockid(3))."""
    return time.process_time() + time.clock_gettime((~pid << 3) | 2)
