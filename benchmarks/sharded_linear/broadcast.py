"""Two processes over gloo: a pass of shared layers against computing and broadcasting one after the other."""

from __future__ import annotations

import tempfile
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from torch import distributed

from benchmarks.sharded_linear.overlap import LAYERS, ROWS, WIDTH, modules, seconds, series, shared

LIMIT_S = 300.0
RANKS = 2


def measure(pairs: int) -> list[float]:
    """Pass ÷ (computing + broadcasts), as rank 0 has it."""
    context = get_context("spawn")
    mine, theirs = context.Pipe(duplex=False)
    with tempfile.TemporaryDirectory(prefix="vnpu-broadcast-") as folder:
        ranks = [context.Process(target=_rank, args=(rank, folder, pairs, theirs)) for rank in range(RANKS)]
        for each in ranks:
            each.start()
        try:
            if not mine.poll(LIMIT_S):
                raise TimeoutError(f"two ranks took longer than {LIMIT_S:g} s")
            found: list[float] = [float(word) for word in mine.recv_bytes().decode().split()]
        finally:
            for each in ranks:
                each.join(LIMIT_S)
                each.kill()
    return found


def _rank(me: int, folder: str, pairs: int, answer: Connection) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{Path(folder) / 'meet'}", rank=me, world_size=RANKS)
    from engine_patch.sharded_linear.group import Group

    group = Group(range(RANKS), me, LIMIT_S)
    plain, (layers, rolling) = modules(), shared(series(RANKS), me, group.line())
    rolling.fill()
    alone, place = group.line(), torch.zeros(rolling.layer_bytes, dtype=torch.uint8)
    x = torch.randn(ROWS, WIDTH)
    found = []
    with torch.inference_mode():
        for pair in range(pairs + 2):
            distributed.barrier()
            compute = seconds(plain, x)
            distributed.barrier()
            transfer = _broadcasts(alone, place)
            distributed.barrier()
            seconds(layers, x)
            took = seconds(layers, x)
            if pair >= 2:
                found.append(took / (compute + transfer))
    rolling.drain()
    if me == 0:
        answer.send_bytes(" ".join(map(str, found)).encode())
    distributed.barrier()


def _broadcasts(line: object, place: torch.Tensor) -> float:
    """Seconds of one pass's broadcasts with nothing else to do."""
    import time

    begun = time.perf_counter()
    for layer in range(LAYERS):
        line.send(place, layer % RANKS).wait(LIMIT_S)  # type: ignore[attr-defined]
    return time.perf_counter() - begun
