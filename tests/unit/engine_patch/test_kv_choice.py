"""vLLM's engine is told at each switch how much KV to keep, after what the switches before have cost."""

from __future__ import annotations

import asyncio
import importlib
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from coordinator.core.model import Step
from engine_patch import core_calls, report
from engine_patch.door import Door
from engine_patch.engine import VllmEngine
from engine_patch.kv_worth import KvWorth
from engine_patch.postbox import Postbox
from engine_patch.report import Report
from engine_patch.start import kv_worth

MIB = 1 << 20
KEPT = 500 * MIB


class Client:
    """AsyncLLM as far as a switch goes; copies run at 1 GB/s."""

    def __init__(self) -> None:
        self.budgets: list[int | None] = []
        self.engine_core = self

    async def call_utility_async(self, method: str, *budget: int | None) -> list[str]:
        if method == core_calls.OFFLOAD:
            self.budgets.extend(budget)
        return await self.collective_rpc(method)

    async def collective_rpc(self, method: str, *, args: tuple[Any, ...] = ()) -> list[str]:
        name, size = ("save_kv", "kv_saved") if method == "vnpu_offload" else ("copy", "restored")
        one = Report(rank=0, pid=1, **{size: 100 * MIB}, steps=(Step("map", 9.0), Step(name, 100 * MIB / 1e9)))
        return [report.encode(one).decode()]


def engine(client: Client, worth: KvWorth | None) -> VllmEngine:
    door = Door(1, lambda load: None)
    return VllmEngine(client, door, asyncio.get_running_loop(), Postbox(), KEPT, worth)  # type: ignore[arg-type]


async def test_the_budget_is_kept_until_computing_is_known_to_be_cheaper() -> None:
    client, worth = Client(), KvWorth(40_000)
    one = engine(client, worth)
    worth.prefilled(1000, 1000 / 1e6)
    await one.offload()
    await one.restore()
    await one.offload()
    for _ in range(50):
        worth.prefilled(1000, 1000 / 1e3)
    await one.offload()
    assert client.budgets == [KEPT, 0, KEPT]
    assert worth.keep_s is not None
    assert abs(worth.keep_s - 2 * 40_000 / 1e9) < 1e-9


async def test_without_figures_nothing_is_chosen() -> None:
    client = Client()
    one = engine(client, None)
    await one.offload()
    await one.restore()
    await one.offload()
    assert client.budgets == [KEPT, KEPT]


def test_a_token_takes_its_share_of_the_cache() -> None:
    worth = kv_worth(SimpleNamespace(num_gpu_blocks=100, block_size=16, kv_cache_memory_bytes=1_600_000))
    assert worth is not None
    worth.saved(100 * MIB, 0.1 * MIB)
    assert worth.keep_s is not None
    assert round(worth.keep_s / (2 * 1e-3)) == 1000
    assert kv_worth(SimpleNamespace(num_gpu_blocks=0, block_size=16, kv_cache_memory_bytes=0)) is None


def test_prompts_are_counted_without_their_hits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of vLLM only the base class is needed: importing vLLM takes seconds and warns."""
    base = ModuleType("vllm.v1.metrics.loggers")
    monkeypatch.setattr(base, "StatLoggerBase", object, raising=False)
    monkeypatch.setitem(sys.modules, base.__name__, base)
    for package in ("vllm", "vllm.v1", "vllm.v1.metrics"):
        monkeypatch.setitem(sys.modules, package, ModuleType(package))
    monkeypatch.delitem(sys.modules, "engine_patch.load", raising=False)
    logger = importlib.import_module("engine_patch.load").KvUse(None)
    monkeypatch.delitem(sys.modules, "engine_patch.load")
    heard: list[tuple[int, float]] = []
    logger._agent = SimpleNamespace(kv_use=lambda use: None, prefilled=lambda *one: heard.append(one))
    ended = SimpleNamespace(num_prompt_tokens=500, num_cached_tokens=120, prefill_time=0.5)
    logger.record(SimpleNamespace(kv_cache_usage=0.5), SimpleNamespace(finished_requests=[ended]))
    logger.record(None, None)
    assert heard == [(380, 0.5)]
