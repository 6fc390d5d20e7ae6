"""`vnpu.yaml` read again: what is applied, what is named as waiting, what is refused whole."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest

from coordinator import reload as module
from coordinator.config import Config, load
from coordinator.errors import ConfigError
from coordinator.reload import ConfigFile, Reloader, Report
from tests.helpers.model_folder import model_folder

TEXT = """
devices: [{id: 0, capacity: 1GiB}]
gateway: {listen: "127.0.0.1:7000", max_queue: 9}
admin: {listen: "127.0.0.1:7001", api_key: secret}
defaults: {keep_alive: 1m}
models:
  a: {path: ./a, kv_cache: 1MiB}
  b: {path: ./a, kv_cache: 1MiB, pin: true}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    model_folder(tmp_path / "a")
    path = tmp_path / "vnpu.yaml"
    path.write_text(TEXT)
    return path


class Node:
    """A reloader and what it applied."""

    def __init__(self, path: Path, *, supervised: bool = False) -> None:
        self.path = path
        self.applied: list[Config] = []
        self.running: list[str] = []
        file = ConfigFile(path, {}, load(path, {}), supervised=supervised)
        self.reloader = Reloader(file, self._take)

    def _take(self, config: Config, running: Config) -> None:
        self.applied.append(config)
        self.running = sorted(running.models)

    async def say(self, *changes: tuple[str, str]) -> Report:
        text = self.path.read_text()
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        self.path.write_text(text)
        return await self.reloader.reload()


async def test_nothing_changed_is_nothing_applied(file: Path) -> None:
    assert await Node(file).say() == Report()


async def test_what_can_change_live_does(file: Path) -> None:
    node = Node(file)
    report = await node.say(
        ("keep_alive: 1m", "keep_alive: 2m, priority: 3"),
        ("max_queue: 9", "max_queue: 10, max_wait: 7s, api_keys: {a: 'sha256:" + "0" * 64 + "'}"),
        ("pin: true", "pin: false"),
        ("api_key: secret", "api_key: other"),
        ("models:", "policy: {name: lru, shadow: landlord}\nmodels:"),
    )
    assert set(report.applied) == {
        "gateway.max_queue", "gateway.max_wait", "gateway.api_keys", "admin.api_key", "policy.name", "policy.shadow",
        "defaults.keep_alive", "defaults.priority", "models.a.keep_alive", "models.a.priority",
        "models.b.keep_alive", "models.b.priority", "models.b.pin",
    }  # fmt: skip
    assert report.waits == ()
    [now] = node.applied
    assert (now.gateway.max_queue, now.models["b"].pin, now.policy.name) == (10, False, "lru")
    assert "other" not in repr(report)


async def test_what_cannot_change_live_is_named_with_what_would_bring_it_in_until_it_is_taken_back(file: Path) -> None:
    node = Node(file)
    report = await node.say(
        ("capacity: 1GiB", "capacity: 2GiB"),
        ("7000", "7005"),
        ("a: {path: ./a, kv_cache: 1MiB", "a: {path: ./a, kv_cache: 2MiB"),
    )
    waiting = {waits.key: waits.why for waits in report.waits}
    assert set(waiting) == {"devices", "gateway.listen", "models.a.kv_cache"}
    assert "restart the engine of a" in waiting["models.a.kv_cache"]
    assert report.applied == ()
    again = await node.say(("keep_alive: 1m", "keep_alive: 3m"))
    assert {waits.key for waits in again.waits} == set(waiting)  # still not what runs
    back = await node.say(("2GiB", "1GiB"), ("7005", "7000"), ("2MiB", "1MiB"))
    assert back == Report()


async def test_models_that_come_and_go(file: Path) -> None:
    node = Node(file)
    report = await node.say(("  b: {", "  c: {"))
    waiting = {waits.key: waits.why for waits in report.waits}
    assert "vnpu engine c" in waiting["models.c"]
    assert "runs on" in waiting["models.b"]
    assert "c" in node.applied[-1].models


async def test_models_come_and_go_where_a_supervisor_keeps_the_engines(file: Path) -> None:
    node = Node(file, supervised=True)
    report = await node.say(("  b: {", "  c.priority: {"))
    assert report == Report(("models.b", "models.c.priority"), ())
    assert node.running == ["a", "c.priority"]
    changed = await node.say(("c.priority: {path: ./a, kv_cache: 1MiB", "c.priority: {path: ./a, kv_cache: 2MiB"))
    assert [waits.key for waits in changed.waits] == ["models.c.priority.kv_cache"]
    again = await node.say(("  c.priority: {", "  b: {"), ("2MiB", "1MiB"))
    assert (set(again.applied), again.waits) == ({"models.b", "models.c.priority"}, ())


async def test_a_model_on_a_device_that_is_not_there_waits(file: Path) -> None:
    node = Node(file, supervised=True)
    report = await node.say(
        ("1GiB}]", "1GiB}, {id: 1, capacity: 1GiB}]"),
        ("models:\n  a: {", "models:\n  c: {path: ./a, kv_cache: 1MiB, device: 1}\n  a: {device: 0, "),
        ("  b: {", "  b: {device: 0, "),
    )
    waiting = {waits.key: waits.why for waits in report.waits}
    assert set(waiting) == {"devices", "models.c", "models.a.device", "models.b.device"}
    assert "no such device 1" in waiting["models.c"]
    assert (report.applied, node.running) == ((), ["a", "b"])


async def test_a_file_that_makes_no_sense_changes_nothing(file: Path) -> None:
    node = Node(file)
    with pytest.raises(ConfigError, match="keep_alive"):
        await node.say(("keep_alive: 1m", "keep_alive: soon"))
    assert node.applied == []


async def test_what_cannot_be_applied_counts_as_not_applied(file: Path) -> None:
    def refuse(config: Config, running: Config) -> None:
        raise ConfigError("no")

    node = Node(file)
    node.reloader = Reloader(ConfigFile(file, {}, load(file, {})), refuse)
    for _ in range(2):
        with pytest.raises(ConfigError, match="no"):
            await node.say()


class Heard(logging.Handler):
    """Set when an error is logged."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.error = asyncio.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.error.set()


async def test_a_watched_file_is_read_when_it_has_changed_and_a_broken_one_is_survived(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOOK_S", 0.01)
    heard, seen = Heard(), asyncio.Queue[Config]()
    monkeypatch.setattr(module.log, "handlers", [heard])
    node = Node(file)
    node.reloader = Reloader(ConfigFile(file, {}, load(file, {})), lambda config, running: seen.put_nowait(config))
    watching = asyncio.create_task(node.reloader.watch())
    async with asyncio.timeout(60):
        assert (await seen.get()).defaults.keep_alive == 60  # what may have changed since the start is read too
        write(file, "devices: [")
        await heard.error.wait()
        write(file, TEXT.replace("1m", "4m"))
        assert (await seen.get()).defaults.keep_alive == 240
    watching.cancel()


def write(file: Path, text: str) -> None:
    file.write_text(text)
