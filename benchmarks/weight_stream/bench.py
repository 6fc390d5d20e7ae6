"""Runs the endpoints in pairs and times them."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager
from typing import Any, NamedTuple

import msgspec
from rich.progress import Progress

from benchmarks.calm import Calm, Moment
from benchmarks.weight_stream.beside import beside
from benchmarks.weight_stream.endpoint import Endpoint
from benchmarks.weight_stream.layout import BLOCK, LOCAL
from coordinator.demo import memcpy
from transfer.netloader.plan import Peer

SHARE = 8
"""Every endpoint's own card is this part of raw loopback: two cores carry all ends here."""
PROBE = 128 << 20


class Took(NamedTuple):
    """Seconds of one pair: the bare loop, the stream over TCP, the copy of mapped memory, and no copy."""

    loop: float
    stream: float
    local: float
    shared: float


class Samples(msgspec.Struct):
    tcp: list[float] = []
    four: list[float] = []
    shared: list[float] = []
    local: list[float] = []
    one_cache: list[float] = []
    two_caches: list[float] = []
    values: dict[str, float] = {}
    starters: dict[int, float] = {}
    huge: bool = False
    dropped: Counter[str] = msgspec.field(default_factory=Counter)

    def add(self, before: Moment, after: Moment, took: Took, *, judged: bool) -> None:
        """Where it is `judged` it may be dropped."""
        if judged and (fault := before.fault(after)):
            self.dropped[fault] += 1
            return
        self.tcp.append(took.loop / took.stream)
        self.shared.append(took.stream / took.shared)
        self.local.append(took.stream / took.local)
        (self.one_cache if after.one_cache else self.two_caches).append(took.stream / took.local)


class Process:
    """One endpoint in a process of its own; ended with the block."""

    def __init__(self, role: str, size: int, limit: float = 0.0) -> None:
        command = [sys.executable, "-m", "benchmarks.weight_stream.endpoint", role, str(size), str(limit)]
        self._child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.port: int = self.hear()["port"]

    @property
    def pid(self) -> int:
        return self._child.pid

    def tell(self, order: dict[str, Any]) -> None:
        assert self._child.stdin is not None
        self._child.stdin.write(json.dumps(order) + "\n")
        self._child.stdin.flush()

    def hear(self) -> dict[str, Any]:
        assert self._child.stdout is not None
        answer: dict[str, Any] = json.loads(self._child.stdout.readline())
        return answer

    def close(self) -> None:
        self._child.kill()
        self._child.wait()
        for pipe in (self._child.stdin, self._child.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


@contextmanager
def process(role: str, size: int, limit: float = 0.0) -> Iterator[Process]:
    one = Process(role, size, limit)
    try:
        yield one
    finally:
        one.close()


def raw(port: int, target: memoryview) -> float:
    """Seconds of a bare `recv_into` loop into memory that is there already, in pieces of a block."""
    begun = time.perf_counter()
    with socket.create_connection((LOCAL, port)) as sock:
        at = 0
        while at < len(target):
            at += sock.recv_into(target[at : at + BLOCK])
    return time.perf_counter() - begun


async def checked_over_raw(pairs: int, size: int, samples: Samples, progress: Progress, *, judged: bool) -> float:
    """Fills what `samples.add` does; raw loopback in bytes a second. Where it is not `judged`, no pair is dropped."""
    task = progress.add_task("one to one, against a bare loop", total=pairs)
    endpoint, rates = Endpoint(size, 0.0), []
    samples.huge = endpoint.pages.huge
    async with AsyncExitStack() as stack:
        source, lender, bare = [stack.enter_context(process(role, size)) for role in ("source", "lender", "bare")]
        starter = await stack.enter_async_context(beside(size))
        samples.values["shared_first_s"] = await starter.fetch()  # its pages are looked at once
        near = Peer(name="lender", host=LOCAL, port=lender.port)
        peer = Peer(name="source", host=LOCAL, port=source.port)
        me = Peer(name="me", host=LOCAL, port=0, ticket=(1.0, "me"), whole=False)
        calm = Calm([os.getpid(), source.pid, lender.pid, bare.pid, *starter.pids])
        before = calm.look(memcpy.seconds_per_byte(PROBE, 2))
        for _ in range(pairs):
            took = Took(
                raw(bare.port, endpoint.memory),
                endpoint.fetch(me, [peer]),
                endpoint.fetch(me, [near], lender.pid),
                await starter.fetch(),
            )
            after = calm.look(memcpy.seconds_per_byte(PROBE, 2))
            samples.add(before, after, took, judged=judged)
            before = after
            rates.append(size / took.loop)
            progress.advance(task)
    endpoint.listener.stop()
    return sorted(rates)[len(rates) // 2]


def starters(count: int, size: int, limit: float) -> float:
    """Seconds until the last of `count` starters has everything; all know of each other from the beginning."""
    with ExitStack() as stack:
        source = stack.enter_context(process("source", size, limit))
        others = [stack.enter_context(process("starter", size, limit)) for _ in range(count)]
        town = [{"name": f"p{n}", "port": one.port, "at": n} for n, one in enumerate([source, *others])]
        for n, one in enumerate(others, 1):
            one.tell({"me": town[n], "peers": [peer for peer in town if peer is not town[n]]})
        return max(float(one.hear()["seconds"]) for one in others)


def chains(rounds: int, most: int, size: int, rate: float, samples: Samples, progress: Progress) -> None:
    """Fills `samples.four`, and the time against the number of starters."""
    limit = rate / SHARE
    task = progress.add_task("several starters", total=2 * rounds + most)
    for _ in range(rounds):
        one = starters(1, size, limit)
        progress.advance(task)
        samples.four.append(starters(4, size, limit) / one)
        progress.advance(task)
    alone = 0.0
    for count in range(1, most + 1):
        took = starters(count, size, limit)
        alone = alone or took
        samples.starters[count] = samples.values[f"starters_{count}_over_1"] = took / alone
        progress.advance(task)
