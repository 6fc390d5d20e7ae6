"""The node that `wake` measures: two real engines on a host device that holds only one of them."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from rich.progress import Progress

from benchmarks import nodes
from coordinator.demo.audit import Audit
from coordinator.demo.scenario import ENGINE_ARGS
from coordinator.store import prompt
from coordinator.supervise.layout import RunFile

SUBJECT = "large"
"""The model whose wake is measured: 1.04 GB of weights."""
OTHER = "medium"
SIZES = {SUBJECT: ("qwen3", "large"), OTHER: ("llama", "medium")}
CAPACITY = "1408MiB"
KV_CACHE = 64 << 20
"""Bytes, of each."""


def make_models(folder: Path, progress: Progress) -> None:
    """Make the models that are not there yet."""
    nodes.make_models(folder, SIZES, progress)


def configuration(models: Path) -> dict[str, object]:
    args = dict(ENGINE_ARGS)
    of = {name: {"path": str((models / name).absolute()), "kv_cache": KV_CACHE, "engine_args": args} for name in SIZES}
    return nodes.configuration(of, CAPACITY, keep_alive="1h", min_residency="200ms")


@contextlib.asynccontextmanager
async def prepared_node(models: Path, run_dir: Path, progress: Progress) -> AsyncIterator[tuple[RunFile, Audit]]:
    """The node, up, with an audit that follows it; stopped when the block ends."""
    starting = progress.add_task("starting two engines", total=None)
    async with nodes.running(configuration(models), run_dir) as found, nodes.audited(found) as (audit, _):
        progress.remove_task(starting)
        prompt.all_prompt()  # who looks on must not be late: its clock times orders and answers
        yield found, audit
