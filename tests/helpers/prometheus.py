"""A real Prometheus (Debian's package) with the scrape configuration and the alert rules of `docker/observability`."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from aiohttp import ClientError, ClientSession

from coordinator.supervise.ports import free_port

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

    async def value(self, expression: str) -> list[dict[str, Any]]:
        """What an instant query finds: a sample each, `metric` its labels, `value` a time and a number as text."""
        async with self._session.get(f"{self._url}/api/v1/query", params={"query": expression}) as answer:
            told = await answer.json()
        assert told["status"] == "success", f"{expression}: {told}"
        found: list[dict[str, Any]] = told["data"]["result"]
        return found

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
