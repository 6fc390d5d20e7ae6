"""The web page in a real Chromium, over a whole coordinator with engines that move no memory."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from coordinator.admin.app import Settings as AdminSettings
from coordinator.admin.keyring import hash_key, new_key
from coordinator.core.policies.registry import make
from coordinator.core.scheduler import Scheduler
from coordinator.store.memory import MemoryEtcd
from tests.helpers.browser import Tab, tab
from tests.helpers.coordinator import EAGER, Coordinator, coordinator
from tests.helpers.stub_engine import Node, node

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]
MIB = 1 << 20
SIZES = {"qwen-a": 600 * MIB, "llama-b": 700 * MIB, "org/mistral-c": 300 * MIB}


def row(model: str) -> str:
    return f"document.querySelector('tr[data-model=\"{model}\"]')"


def phase(model: str, word: str) -> str:
    return f"{row(model)}?.querySelector('.badge').textContent === '{word}'"


async def press(page: Tab, model: str, act: str) -> None:
    await page.js(f'{row(model)}.querySelector(\'button[data-act="{act}"], button[aria-label^="{act}"]\').click()')


@asynccontextmanager
async def running(etcd: MemoryEtcd, port: int = 0, keys: dict[str, str] | None = None) -> AsyncIterator[Coordinator]:
    roles = {"operate": keys} if keys else {}
    admin = AdminSettings(port=port, roles=roles)
    core = Scheduler(EAGER, shadow=make("lru"))
    async with coordinator(etcd.client(), admin=admin, scheduler=core, models=tuple(SIZES)) as started:
        yield started


@asynccontextmanager
async def engines(etcd: MemoryEtcd) -> AsyncIterator[Node]:
    async with node(etcd.client(), SIZES, 1024 * MIB) as n:
        yield n


async def started(c: Coordinator) -> None:
    """Every engine has had its start-up, and qwen-a is there."""
    for model in ("llama-b", "org/mistral-c", "qwen-a"):
        assert (await c.ask(model))[0] == 200


async def shots(page: Tab, tmp_path: Path) -> None:
    """Wide and narrow, light and dark; PAGE_SHOTS names a folder that keeps them."""
    folder = Path(os.environ.get("PAGE_SHOTS", tmp_path))
    for name, width, height in (("wide", 1440, 1100), ("phone", 390, 844)):
        for colours in ("light", "dark"):
            await page.size(width, height, phone=name == "phone")
            await page.prefer(colours)
            await page.until(f"document.documentElement.dataset.theme === '{colours}'")
            await page.until("document.querySelector('#devices svg').clientWidth <= innerWidth")
            await page.js("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
            await page.shoot(folder / f"{name}-{colours}.png")
            overflow = await page.js("document.documentElement.scrollWidth - document.documentElement.clientWidth")
            assert overflow <= 0, f"{name}: the page is wider than the screen"
    await page.size(1440, 1100)


async def test_it_shows_a_switch_live_and_obeys(tmp_path: Path) -> None:
    etcd = MemoryEtcd()
    async with engines(etcd), running(etcd) as c, tab(tmp_path / "profile") as page:
        await started(c)
        await page.size(1440, 1100)
        await page.open(c.runtime.admin_url + "/")
        await page.until("document.querySelector('#status').textContent === 'live'")
        await page.until(phase("qwen-a", "resident"))
        for model in ("llama-b", "qwen-a", "org/mistral-c", "llama-b"):
            assert (await c.ask(model))[0] == 200
            await page.until(phase(model, "resident"))
        await page.until("document.querySelector('#wakes svg')?.getAttribute('aria-label').includes('wakes')")
        await page.until("document.querySelectorAll('#decisions li').length >= 4")
        await page.until("document.querySelector('#devices path.s1')?.getAttribute('d').length > 0")
        await page.js("document.querySelector('#decisions details:has(table)').open = true")
        await shots(page, tmp_path)

        await press(page, "llama-b", "pin")
        await page.until(f"{row('llama-b')}.querySelector('button[aria-pressed=true]')?.textContent === 'unpin'")
        await press(page, "llama-b", "sleep")
        await page.until("document.querySelector('#ask').open")
        await page.js("document.querySelector('#ask-yes').click()")
        await page.until(phase("llama-b", "offloaded"))
        await press(page, "qwen-a", "wake")
        await page.until(phase("qwen-a", "resident"))
        await press(page, "qwen-a", "why")
        await page.until("document.querySelector('#why').open && document.querySelector('#why-text h3')")
        await page.js("document.querySelector('#why button').click()")
        assert page.errors == []


async def test_it_works_by_keyboard_alone(tmp_path: Path) -> None:
    etcd = MemoryEtcd()
    async with engines(etcd), running(etcd) as c, tab(tmp_path / "profile") as page:
        await started(c)
        await page.open(c.runtime.admin_url + "/")
        await page.until(phase("qwen-a", "resident"))
        reached = set()
        for _ in range(60):
            await page.key("Tab", 9)
            reached.add(await page.js("document.activeElement.getAttribute('aria-label') || document.activeElement.id"))
            if "pin qwen-a" in reached:
                break
        assert {"theme", "key", "by", "span", "filter"} <= reached
        await page.key("Enter", 13, "\r")
        await page.until(f"{row('qwen-a')}.querySelector('button[aria-pressed=true]')?.textContent === 'unpin'")
        assert await page.js("document.activeElement.getAttribute('aria-label')") == "unpin qwen-a"


async def test_it_asks_for_the_key_and_survives_the_coordinators_restart(tmp_path: Path) -> None:
    etcd, key = MemoryEtcd(), new_key()
    keys = {"anna": hash_key(key)}
    async with engines(etcd), tab(tmp_path / "profile") as page:
        async with running(etcd, keys=keys) as c:
            await started(c)
            url = c.runtime.admin_url
            await page.open(url + "/")
            await page.until("document.querySelector('#key-box').open")
            assert "qwen-a" not in await page.js("document.body.innerText")
            await page.js(f"document.querySelector('#key-text').value = '{key}'")
            await page.js("document.querySelector('#key-box .main').click()")
            await page.until(phase("qwen-a", "resident"))
            assert await page.js("document.cookie") == ""
            assert key not in await page.js("location.href")
        await page.until("document.querySelector('#status').textContent === 'reconnecting'")
        assert await page.js(f"Boolean({row('qwen-a')})")  # what was known stays on the screen
        async with running(etcd, port=int(url.rpartition(":")[2]), keys=keys) as c:
            await page.until("document.querySelector('#status').textContent === 'live'")
            assert (await c.ask("llama-b"))[0] == 200
            await page.until(phase("llama-b", "resident"))
