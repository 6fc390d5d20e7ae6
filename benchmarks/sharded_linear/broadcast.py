"""Two processes over gloo: a pass of shared layers against computing and broadcasting one after the other."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import torch
from torch import distributed

from benchmarks.sharded_linear.overlap import LAYERS, ROWS, WIDTH, modules, seconds, series, shared
from engine_patch.sharded_linear.rolling import Rolling

LIMIT_S = 300.0
RANKS = 2


class Ratios(NamedTuple):
    """A pass ÷ (computing + broadcasts), of the rank whose median is worse: `stock` with the broadcasts of a group as
    torch makes it, `own` with those of a group as the product makes it (`group.in_the_background`), which are faster.
    """

    stock: list[float]
    own: list[float]


def measure(pairs: int) -> Ratios:
    context = get_context("spawn")
    pipes = [context.Pipe(duplex=False) for _ in range(RANKS)]
    with tempfile.TemporaryDirectory(prefix="vnpu-broadcast-") as folder:
        ranks = [
            context.Process(target=_rank, args=(rank, folder, pairs, theirs)) for rank, (_, theirs) in enumerate(pipes)
        ]
        for each in ranks:
            each.start()
        try:
            told = [_told(mine) for mine, _ in pipes]
        finally:
            for each in ranks:
                each.join(LIMIT_S)
                each.kill()
    stock, own = (max(of, key=statistics.median) for of in zip(*told, strict=True))
    return Ratios(stock, own)


def _told(by: Connection) -> tuple[list[float], list[float]]:
    """Ratios by the one kind of group and by the other."""
    if not by.poll(LIMIT_S):
        raise TimeoutError(f"two ranks took longer than {LIMIT_S:g} s")
    found = [float(word) for word in by.recv_bytes().decode().split()]
    return found[::2], found[1::2]


def _rank(me: int, folder: str, pairs: int, answer: Connection) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{Path(folder) / 'meet'}", rank=me, world_size=RANKS)
    from engine_patch.sharded_linear.group import Group

    group = Group(range(RANKS), me, LIMIT_S)
    plain, (layers, rolling) = modules(), shared(series(RANKS), me, group.line())
    stock, own, places = distributed.new_group(), group.line(), _places(rolling, me)
    x = torch.randn(ROWS, WIDTH)
    found = []
    with torch.inference_mode():
        for pair in range(pairs + 2):
            compute = _together(lambda: seconds(plain, x))
            sending = _together(lambda: _broadcasts(places, lambda at, owner: distributed.broadcast(at, owner, stock)))
            ours = _together(lambda: _broadcasts(places, lambda at, owner: own.send(at, owner).wait(LIMIT_S)))
            rolling.fill()
            _together(lambda: seconds(layers, x))
            took = seconds(layers, x)
            rolling.drain()  # nothing is under way while the next pair computes alone
            if pair >= 2:
                found += [took / (compute + sending), took / (compute + ours)]
    answer.send_bytes(" ".join(map(str, found)).encode())
    distributed.barrier()


def _together(work: Callable[[], float]) -> float:
    """Begun when both ranks are here."""
    distributed.barrier()
    return work()


def _places(rolling: Rolling, me: int) -> list[torch.Tensor]:
    """Where the layers lie in a pass: those of `me` each by itself, the others in turns in as many buffers as its
    window has. (In one place for all they would be in a core's cache, which they are not in a pass.)"""
    window = rolling.series.window
    buffers = [torch.zeros(rolling.layer_bytes, dtype=torch.uint8) for _ in range(window.buffers(me))]
    return [
        torch.zeros(rolling.layer_bytes, dtype=torch.uint8)
        if window.owner(layer) == me
        else buffers[window.turn(layer, me) % len(buffers)]
        for layer in range(LAYERS)
    ]


def _broadcasts(places: list[torch.Tensor], send: Callable[[torch.Tensor, int], object]) -> float:
    """Seconds of one pass's broadcasts with nothing else to do."""
    begun = time.perf_counter()
    for layer, place in enumerate(places):
        send(place, layer % RANKS)
    return time.perf_counter() - begun
