"""A whole node whose engines are started when they are needed. Host memory holds one engine's process at a time."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from coordinator.core.model import Decision, Order
from coordinator.core.process import Life, Process
from tests.helpers.light_node import LightNode, light_node, model_folders
from tests.helpers.processes import alive

CONFIG = """
devices: [{id: 0, capacity: 2GiB}, {id: 1, capacity: 32MiB}]
gateway: {listen: 127.0.0.1:0}
admin: {listen: 127.0.0.1:0}
host_ram: 1584MiB
defaults: {min_residency: 100ms}
models:
  a: {path: a, kv_cache: 1MiB, device: any, start: lazy}
  b: {path: b, kv_cache: 1MiB, device: 0, start: lazy, stop_after: 2s}
  huge: {path: huge, kv_cache: 1MiB, device: any, start: lazy}
"""


@pytest_asyncio.fixture
async def node(tmp_path: Path) -> AsyncIterator[LightNode]:
    model_folders(tmp_path, a=6 << 20, b=6 << 20, huge=1 << 30)
    async with light_node(tmp_path, CONFIG) as running:
        yield running


@pytest.mark.timeout(300)
async def test_a_request_starts_its_engine_and_another_takes_its_memory(node: LightNode) -> None:
    await node.until(lambda picture: len(picture.of(Process)) == 4)
    assert node.lives() == dict.fromkeys(("a@0", "a@1", "b", "huge"), Life.STOPPED)

    status, answer = await node.ask("a")
    assert status == 200, answer
    await node.until(lambda picture: node.lives()["a@0"] is Life.RUNNING)
    assert node.lives()["a@1"] is Life.STOPPED  # device 0 has more room
    first = node.pid("a@0")
    assert alive(first)

    status, other = await node.ask("b")
    assert status == 200, other
    assert node.lives()["a@0"] is Life.STOPPED
    assert not alive(first)
    causes = {d.order: d.cause for d in node.mirror.picture.of(Decision).values() if d.engine == "a@0"}
    assert causes[Order.CLOSE].startswith("host memory for b: requests for b have waited for")

    await node.until(lambda picture: node.lives()["b"] is Life.STOPPED)
    stopped = [d.cause for d in node.mirror.picture.of(Decision).values() if (d.order, d.engine) == (Order.STOP, "b")]
    assert stopped[0].endswith("stopped after 2 s")

    status, again = await node.ask("a")
    assert (status, again) == (200, answer)
    assert node.pid("a@0") not in (0, first)

    status, refused = await node.ask("huge")
    assert status == 503
    assert "huge needs 2.5 GiB of local's host memory, which has 1.55 GiB" in refused["error"]["message"]
