"""Nodes of one engine each: both engines of a pair compute on the same core, as one under vNPU alone would."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import msgspec

from benchmarks import nodes
from benchmarks.async_runner import device
from benchmarks.async_runner.designs import Side
from benchmarks.async_runner.plugin import plugged

MODELS = {"5mb": "tiny", "200mb": "small"}
"""Sizes of `vnpu make-model`: 3.7 MB and 168 MB of bfloat16 weights."""
CAPACITY, KV = "512MiB", "64MiB"
BOARD, NAME = "board", "model"
SEARCH = "PYTHONPATH"


class Load(msgspec.Struct, frozen=True):
    """So many requests at once, for `tokens` tokens each."""

    name: str
    model: str
    requests: int
    tokens: int


LOADS = (
    Load("tpot_5mb_c1", "5mb", 1, 256),
    Load("tpot_5mb_c16", "5mb", 16, 128),
    Load("tpot_200mb_c4", "200mb", 4, 48),
)


def made(models: Path, model: str) -> Path:
    return nodes.make_model(models / f"qwen3-{MODELS[model]}", "qwen3", MODELS[model])


def configuration(side: Side, model: Path) -> dict[str, object]:
    one = {"path": str(model), "kv_cache": KV, "engine_args": side.engine_args, "async_runner": side.async_runner}
    return nodes.configuration({NAME: one}, CAPACITY, pin=True)


@contextlib.asynccontextmanager
async def engine(side: Side, model: Path, folder: Path) -> AsyncIterator[str]:
    """URL of the engine's own port, not the gateway's."""
    async with contextlib.AsyncExitStack() as stack:
        with _environment(_plugged(side, folder)):
            found = await stack.enter_async_context(nodes.running(configuration(side, model), folder))
        yield nodes.urls(found)[NAME]


@contextlib.contextmanager
def _environment(more: dict[str, str]) -> Iterator[None]:
    """For processes that are started meanwhile; a search path is put before what there is."""
    before = {name: os.environ.get(name) for name in more}
    for name, value in more.items():
        path = [value, *([before[name]] if name == SEARCH and before[name] else [])]
        os.environ[name] = os.pathsep.join(str(part) for part in path)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _plugged(side: Side, folder: Path) -> dict[str, str]:
    if side.plugin is None:
        return {}
    return {SEARCH: plugged(folder / "plugin", side.plugin), device.BOARD: str(folder / BOARD)}
