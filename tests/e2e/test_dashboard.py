"""Every panel of the dashboard shows something: each expression is asked of a real Prometheus that scrapes a real node,
with engines that hold real memory and no vLLM."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.light_node import LightNode, light_node, model_folders
from tests.helpers.prometheus import FOLDER, PATIENCE_S, Prometheus, prometheus

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]

CONFIG = """
devices: [{id: 0, capacity: 12MiB}]
gateway: {listen: 127.0.0.1:0}
admin: {listen: 127.0.0.1:0}
policy: {shadow: lru}
defaults: {min_residency: 0s, ttft_objective: 1s}
models:
  a: {path: a, kv_cache: 1MiB}
  b: {path: b, kv_cache: 1MiB}
"""
SIZE = 6 << 20
"""Of weights; with its KV an engine takes two thirds of the device."""


def targets() -> Iterator[tuple[str, str]]:
    """Title and expression of every query of every panel."""
    for panel in json.loads((FOLDER / "dashboard.json").read_text())["panels"]:
        for target in panel.get("targets", []):
            yield f"{panel['id']}{target['refId']} {panel['title']}", target["expr"]


async def switch(node: LightNode) -> None:
    """Each model is asked while the other is on the device."""
    for model in ("a", "b"):
        status, answer = await node.ask(model)
        assert status == 200, answer


async def shown(p: Prometheus, expression: str) -> list[dict[str, Any]]:
    """The samples that a panel would draw: Grafana draws no NaN."""
    return [each for each in await p.value(expression) if math.isfinite(float(each["value"][1]))]


async def test_every_panel_shows_something_after_a_switch(tmp_path: Path) -> None:
    model_folders(tmp_path, a=SIZE, b=SIZE)
    async with light_node(tmp_path, CONFIG) as node, prometheus(tmp_path, node.run_file()["gateway"]) as p:
        await p.until_up()
        empty = dict(targets())
        try:
            async with asyncio.timeout(3 * PATIENCE_S):
                while empty:
                    await switch(node)
                    for title, expression in list(empty.items()):
                        if await shown(p, expression):
                            del empty[title]
        except TimeoutError:
            raise AssertionError(f"without data: {empty}") from None
