"""The node that `reality` measures: three real engines on a host device that holds two of them; and the trace."""

from __future__ import annotations

import contextlib
import random
from collections.abc import AsyncIterator
from pathlib import Path

from rich.progress import Progress

from benchmarks import nodes
from coordinator.demo.audit import Audit
from coordinator.demo.scenario import ENGINE_ARGS
from coordinator.simulate.trace import Request
from coordinator.store.base import Store
from coordinator.supervise.layout import RunFile

KINDS = {"first": ("qwen3", "medium"), "second": ("llama", "medium"), "third": ("qwen2", "medium")}
"""Of 0.55 GB each."""
WEIGHED = (5, 3, 2)
"""How often each is asked for."""
CAPACITY = 1408 << 20
KV = 64 << 20
MIN_RESIDENCY_S = 1.0
KEEP_ALIVE_S = 3600.0
GAP_S = 2.5
"""Between requests, on average."""
APART_S = 5.0
"""Between the first requests of a trace, one for each model."""
TOKENS = 8
JUDGED, BEFORE, AFTER = 4, 5, 6
"""Seeds of the trace, and of those in which it is practised."""


def trace(seconds: float, seed: int) -> list[Request]:
    """One request for each model, `APART_S` apart; then for `seconds` arrivals at random, the same for a seed. What a
    prompt takes is measured in practice."""
    begins = len(KINDS) * APART_S
    found = [
        Request(t=number * APART_S, model=name, prompt_tokens=0, output_tokens=TOKENS)
        for number, name in enumerate(KINDS)
    ]
    draw, at = random.Random(seed), begins
    while (at := at + draw.expovariate(1 / GAP_S)) < begins + seconds:
        (model,) = draw.choices(list(KINDS), WEIGHED)
        found.append(Request(t=at, model=model, prompt_tokens=0, output_tokens=TOKENS))
    return found


def make_models(folder: Path, progress: Progress) -> None:
    """Make the models that are not there yet."""
    nodes.make_models(folder, {"-".join(kind): kind for kind in KINDS.values()}, progress)


def path(models: Path, name: str) -> Path:
    return models / "-".join(KINDS[name])


def configuration(models: Path) -> dict[str, object]:
    args, kv = dict(ENGINE_ARGS), f"{KV >> 20}MiB"
    return nodes.configuration(
        {name: {"path": str(path(models, name).absolute()), "kv_cache": kv, "engine_args": args} for name in KINDS},
        f"{CAPACITY >> 20}MiB",
        keep_alive=f"{KEEP_ALIVE_S:g}s",
        min_residency=f"{MIN_RESIDENCY_S:g}s",
    )


@contextlib.asynccontextmanager
async def prepared_node(models: Path, run_dir: Path, progress: Progress) -> AsyncIterator[tuple[RunFile, Audit, Store]]:
    """The node, up, with an audit that follows it; stopped when the block ends."""
    starting = progress.add_task("starting three engines", total=None)
    async with nodes.running(configuration(models), run_dir) as found, nodes.audited(found) as (audit, store):
        progress.remove_task(starting)
        yield found, audit, store
