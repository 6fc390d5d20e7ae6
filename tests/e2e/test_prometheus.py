"""The alert rules and the scrape configuration in a real Prometheus, over a real coordinator."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from aiohttp import ClientError, ClientSession

from coordinator.store.memory import MemoryEtcd
from tests.helpers.coordinator import coordinator
from tests.helpers.light_engine import free_port

pytestmark = pytest.mark.system

FOLDER = Path(__file__).parents[2] / "docker" / "observability"
PATIENCE_S = 120.0
LOOK_S = 0.2


def tool(name: str) -> str:
    found = shutil.which(name)
    assert found is not None, f"no {name} here; install it: apt-get install prometheus"
    return found


class Prometheus:
    def __init__(self, url: str, session: ClientSession) -> None:
        self._url = url
        self._session = session

    async def ask(self, path: str) -> Any:
        async with self._session.get(f"{self._url}/api/v1/{path}") as answer:
            return (await answer.json())["data"]

    async def until_up(self) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while True:
                try:
                    targets = (await self.ask("targets"))["activeTargets"]
                    if [target["health"] for target in targets] == ["up"]:
                        return
                except ClientError:
                    pass  # it has not come up yet
                await asyncio.sleep(LOOK_S)

    async def rules(self) -> dict[str, dict[str, Any]]:
        """By name, once each was evaluated."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                found = {rule["name"]: rule for group in (await self.ask("rules"))["groups"] for rule in group["rules"]}
                if found and all(rule["health"] != "unknown" for rule in found.values()):
                    return found
                await asyncio.sleep(LOOK_S)

    async def until_state(self, name: str, *states: str) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while True:
                if (await self.rules())[name]["state"] in states:
                    return
                await asyncio.sleep(LOOK_S)


def configured(folder: Path, gateway: str) -> None:
    """Our files, changed in where the gateway is, where its key lies, and how often it looks; sound to promtool."""
    shutil.copy(FOLDER / "alerts.yaml", folder)
    (folder / "key").write_text("")
    text = (FOLDER / "prometheus.yaml").read_text()
    for ours, here in (("coordinator:8080", urlsplit(gateway).netloc), ("/tmp/api-key", f"{folder}/key"), ("5s", "1s")):
        assert ours in text
        text = text.replace(ours, here)
    (folder / "prometheus.yaml").write_text(text)
    checked = subprocess.run(
        [tool("promtool"), "check", "config", "prometheus.yaml"],
        cwd=folder, capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    assert checked.returncode == 0, checked.stdout + checked.stderr


@asynccontextmanager
async def prometheus(folder: Path, gateway: str) -> AsyncIterator[Prometheus]:
    configured(folder, gateway)
    listen = f"127.0.0.1:{free_port()}"
    process = await asyncio.create_subprocess_exec(
        tool("prometheus"), "--config.file=prometheus.yaml", "--storage.tsdb.path=data",
        f"--web.listen-address={listen}", cwd=folder, stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        async with ClientSession() as session:
            yield Prometheus(f"http://{listen}", session)
    finally:
        process.kill()
        await process.wait()


async def test_a_real_prometheus_scrapes_a_coordinator_and_every_rule_is_evaluated(tmp_path: Path) -> None:
    async with coordinator(MemoryEtcd().client()) as one, prometheus(tmp_path, one.runtime.gateway_url) as p:
        await p.until_up()
        rules = await p.rules()
        [group] = yaml.safe_load((FOLDER / "alerts.yaml").read_text())["groups"]
        assert list(rules) == [rule["alert"] for rule in group["rules"]]
        assert {(rule["health"], rule.get("lastError", "")) for rule in rules.values()} == {("ok", "")}
        [leader] = (await p.ask("query?query=vnpu_leader"))["result"]
        assert leader["value"][1] == "1"
        await p.until_state("VnpuNobodyLeads", "inactive")  # it is alarmed until the first scrape


async def test_it_is_alarmed_when_the_only_coordinator_is_gone(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        one = await stack.enter_async_context(coordinator(MemoryEtcd().client()))
        async with prometheus(tmp_path, one.runtime.gateway_url) as p:
            await p.until_up()
            await p.until_state("VnpuNobodyLeads", "inactive")
            await stack.aclose()
            await p.until_state("VnpuNobodyLeads", "pending", "firing")
