"""Random sequences, each with its seed: SEQUENCES=10000 FIRST_SEED=1 asks for more of them (`make campaign`)."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path

import pytest
import uvloop

from tests.helpers.brood import Brood
from tests.helpers.random_node import RandomNode

SEQUENCES = int(os.environ.get("SEQUENCES", "300"))
FIRST_SEED = int(os.environ.get("FIRST_SEED", "1"))
STEPS = 10
AT_ONCE = 8
PATIENCE_S = 60.0


@pytest.mark.timeout(300 + 2 * SEQUENCES)
def test_ledger_driver_and_proc_agree_after_random_sequences(tmp_path: Path) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:  # as the daemon itself
        runner.run(_sequences(tmp_path))


async def _sequences(folder: Path) -> None:
    """Several at once: each waits most of the time."""
    places = asyncio.Semaphore(AT_ONCE)
    async with await Brood.start(folder / "brood") as brood, asyncio.TaskGroup() as group:
        for seed in range(FIRST_SEED, FIRST_SEED + SEQUENCES):
            await places.acquire()
            group.create_task(_sequence(folder / str(seed), brood, seed)).add_done_callback(lambda _: places.release())


async def _sequence(folder: Path, brood: Brood, seed: int) -> None:
    node = RandomNode(folder, brood, seed)
    try:
        async with asyncio.timeout(PATIENCE_S):
            await node.live(STEPS)
    except Exception:
        print(f"SEQUENCES=1 FIRST_SEED={seed}:", *node.said, sep="\n  ")  # noqa: T201
        raise
    await asyncio.to_thread(shutil.rmtree, folder)
