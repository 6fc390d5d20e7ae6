"""`make pictures`: the pictures in README and docs, taken of a real node: three vLLM engines, a device for two.

    python -m tests.pictures [FOLDER]        where the pictures go; default: docs/images

The models are the demo's (`make demo` makes them, in `.vnpu/demo/models`); the page is shot in a real Chromium,
`vnpu-watch` draws itself as SVG. Requests come at random, by a fixed seed; times and sizes are those of the machine.
"""

from __future__ import annotations

import asyncio
import io
import random
import re
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import yaml
from rich.console import Console

from coordinator.cli.explanation import explain, sentences
from coordinator.cli.frame import frame
from coordinator.cli.screen import Screen
from coordinator.cli.watcher import Watcher
from coordinator.demo.node import running_node
from coordinator.picture import Mirror
from coordinator.store import connect
from coordinator.supervise.layout import RunFile
from tests.helpers.browser import Tab, tab

ROOT = Path(__file__).resolve().parents[1]
MODELS = ROOT / ".vnpu" / "demo" / "models"
KV = {"qwen-large": "192MiB", "llama-medium": "64MiB", "qwen2-medium": "64MiB"}
WEIGHTS = (5, 3, 3)
CAPACITY = "1900MiB"
REQUESTS = 6
PAUSE_S = 1.0
TOKENS = (4, 8, 16)
LONG = 60
COLUMNS, LINES = 120, 30
CHOSEN = "llama-medium"
PHONE, DESK = (390, 1700), (1200, 1010)


def configuration(models: Path) -> dict[str, object]:
    args = {"dtype": "bfloat16", "max_model_len": 1024, "enforce_eager": True}
    return {
        "devices": [{"id": 0, "driver": "host", "capacity": CAPACITY}],
        "gateway": {"listen": "127.0.0.1:0"},
        "admin": {"listen": "127.0.0.1:0"},
        "defaults": {"min_residency": "500ms"},
        "models": {name: {"path": str(models / name), "kv_cache": kv, "engine_args": args} for name, kv in KV.items()},
    }


class Clients:
    """Who asks the node. `http` is open."""

    def __init__(self, http: aiohttp.ClientSession, gateway: str) -> None:
        self._http = http
        self._gateway = gateway
        self._chance = random.Random(8)

    async def ask(self, model: str, tokens: int) -> None:
        prompt = f"{self._chance.random()}: it was"
        body = {"model": model, "prompt": prompt, "max_tokens": tokens, "temperature": 0}
        async with self._http.post(f"{self._gateway}/v1/completions", json=body) as answer:
            answer.raise_for_status()
            await answer.read()

    async def come_and_go(self) -> None:
        """One after the other, with pauses."""
        for _ in range(REQUESTS):
            [model] = self._chance.choices(list(KV), WEIGHTS)
            await self.ask(model, self._chance.choice(TOKENS))
            await asyncio.sleep(self._chance.uniform(0.2, PAUSE_S))


@asynccontextmanager
async def watching(run: RunFile) -> AsyncIterator[Watcher]:
    """`vnpu-watch` without a terminal; it remembers what happens meanwhile."""
    store = connect(run.etcd)
    mirror = Mirror(store)
    watcher = Watcher(mirror)

    async def look() -> None:
        await watcher.first_answer(run.etcd)
        while True:
            watcher.view()
            await watcher.news()

    tasks = [asyncio.create_task(mirror.run()), asyncio.create_task(look())]
    try:
        yield watcher
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        await store.close()


def terminal() -> Console:
    """That keeps what is drawn on it."""
    return Console(record=True, width=COLUMNS, height=LINES, file=io.StringIO(), force_terminal=True, no_color=False,
                   color_system="truecolor")  # fmt: skip


def keep(console: Console, title: str, file: Path) -> None:
    """As SVG, with the reader's own font: it loads nothing from elsewhere."""
    drawing = console.export_svg(title=title, unique_id=file.stem)
    drawing = re.sub(r"@font-face \{.*?\n    \}\n", "", drawing, flags=re.DOTALL)
    file.write_text(re.sub(r"[ \t]+$", "", drawing, flags=re.MULTILINE) + "\n")


def draw_watch(watcher: Watcher, folder: Path) -> None:
    """As it stands on a terminal."""
    console = terminal()
    console.print(frame(watcher.view(), watcher.picture, watcher.happenings, Screen(chosen=CHOSEN), console))
    keep(console, "vnpu-watch", folder / "watch.svg")
    console = terminal()
    console.print(sentences(explain(watcher.picture, CHOSEN)[:3], CHOSEN))
    keep(console, f"vnpu-watch why {CHOSEN}", folder / "why.svg")


async def shoot(page: Tab, folder: Path) -> None:
    await page.size(*DESK)
    await page.js("document.querySelector('details')?.setAttribute('open', '')")
    await asyncio.sleep(0.5)  # drawn
    await page.shoot(folder / "page.png")
    await page.size(*PHONE, phone=True)
    await page.prefer("dark")
    await asyncio.sleep(0.5)
    await page.shoot(folder / "page-phone.png")


async def main(folder: Path, models: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="vnpu-pictures-") as name:
        here = Path(name)
        (here / "vnpu.yaml").write_text(yaml.safe_dump(configuration(models)))
        async with (
            running_node(here / "vnpu.yaml", here / "run") as node,
            aiohttp.ClientSession() as http,
            tab(here / "chromium") as page,
        ):
            run = await node.wait_ready()
            clients = Clients(http, run.gateway)
            async with watching(run) as watcher:
                await page.open(f"{run.admin}/")
                await clients.come_and_go()
                async with asyncio.TaskGroup() as tasks:
                    for model in KV:
                        tasks.create_task(clients.ask(model, LONG))
                    await asyncio.sleep(1.0)
                    draw_watch(watcher, folder)
                    await shoot(page, folder)
                assert page.errors == []


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "images", MODELS))
