"""Models that come and go while a node runs: real etcd, daemon, coordinator and supervisor, engines without vLLM."""

from __future__ import annotations

from pathlib import Path

import pytest

from coordinator.core.model import Phase, Residency
from coordinator.core.process import Process
from coordinator.supervise.readiness import phase
from tests.helpers.eventually import eventually
from tests.helpers.light_node import LightNode, light_node, model_folders
from tests.helpers.processes import alive

CONFIG = """
devices: [{id: 0, capacity: 64MiB}]
gateway: {listen: 127.0.0.1:0}
admin: {listen: 127.0.0.1:0}
defaults: {min_residency: 100ms}
models:
  a: {path: a, kv_cache: 1MiB}
"""
B = "  b: {path: b, kv_cache: 1MiB}\n"
C = "  c: {path: b, kv_cache: 1MiB, start: lazy, aliases: [sea]}\n"


async def reload(node: LightNode, config: str) -> dict[str, object]:
    (node.folder / "vnpu.yaml").write_text(config)
    status, report = await node.admin("POST", "/v1/config/reload")
    assert status == 200, report
    return dict(report)


def engines(node: LightNode) -> set[str]:
    """As the run file has them."""
    return {part["name"] for part in node.run_file()["processes"] if part["kind"] == "engine"}


async def answers(node: LightNode, model: str) -> int:
    return (await node.ask(model))[0]


@pytest.mark.timeout(300)
async def test_models_come_and_go_while_the_node_runs(tmp_path: Path) -> None:
    model_folders(tmp_path, a=6 << 20, b=6 << 20)
    async with light_node(tmp_path, CONFIG) as node:
        assert [await answers(node, model) for model in ("a", "b", "sea")] == [200, 404, 404]
        assert await reload(node, CONFIG + B + C) == {"applied": ["models.b", "models.c"], "waits": []}
        assert [await answers(node, model) for model in ("b", "sea", "a")] == [200, 200, 200]
        pids = {name: node.pid(name) for name in ("a", "b", "c")}

        report = await reload(node, CONFIG.replace("  a:", "  d:"))
        assert report == {"applied": ["models.a", "models.b", "models.c", "models.d"], "waits": []}
        assert [await answers(node, model) for model in ("d", "a", "b", "sea")] == [200, 404, 404, 404]
        await node.until(lambda picture: set(picture.of(Residency)) == {"d"} and not picture.of(Process))
        await node.said("d: ready")
        await eventually(lambda: engines(node) == {"d"})
        assert not any(alive(pid) for pid in pids.values())

        assert await reload(node, CONFIG) == {"applied": ["models.a", "models.d"], "waits": []}
        assert [await answers(node, model) for model in ("a", "d")] == [200, 404]
        await node.until(lambda picture: phase(picture, "a") == Phase.RESIDENT)


@pytest.mark.timeout(300)
async def test_what_cannot_be_taken_up_is_told_and_leaves_the_others_alone(tmp_path: Path) -> None:
    model_folders(tmp_path, a=6 << 20, b=6 << 20)
    async with light_node(tmp_path, CONFIG) as node:
        before = node.pid("a")
        elsewhere = CONFIG.replace("64MiB}]", "64MiB}, {id: 1, capacity: 64MiB}]").replace("a: {", "a: {device: 0, ")
        report = await reload(node, elsewhere + B.replace("b: {", "b: {device: 1, "))
        waits = {each["key"]: each["why"] for each in report["waits"]}  # type: ignore[attr-defined]
        assert "no such device 1" in waits["models.b"]
        port = node.run_file()["gateway"].rpartition(":")[2]
        await reload(node, CONFIG + B.replace("1MiB}", f"1MiB, port: {port}}}"))
        await node.said("b is not started: ")
        assert (await answers(node, "a"), node.pid("a")) == (200, before)
