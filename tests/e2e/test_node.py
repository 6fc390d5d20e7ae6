"""A whole node as its user runs it: `vnpu up` with two real vLLM engines, a third one started by hand from the line
that `vnpu engine --print` shows, on a host device that holds two of them. One node for the whole file: four starts."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import psutil
import pytest
import yaml

from coordinator.demo.node import Node, start
from coordinator.supervise.layout import RunFile
from tests.helpers.eventually import eventually
from tests.helpers.processes import alive

pytestmark = [pytest.mark.engine, pytest.mark.timeout(2400)]

READY_S = 900.0
"""Three engine starts; eight minutes were seen where three others wanted the two cores, too."""
PATIENCE_S = 300.0
VNPU = [sys.executable, "-m", "coordinator.cli.main"]
MODELS = {"org/a": "qwen3", "b": "llama", "c": "qwen2"}
ENGINE_ARGS = {"dtype": "bfloat16", "max_model_len": 512, "max_num_seqs": 8, "block_size": 32, "enforce_eager": True}
BY_HAND = "c"
T = TypeVar("T")


class Running:
    """The node, its run file, and the engine that was started by hand."""

    def __init__(self, node: Node, found: RunFile, by_hand: subprocess.Popen[bytes], config: Path) -> None:
        self.node = node
        self.found = found
        self.by_hand = by_hand
        self.config = config
        self.before: dict[str, list[int]] = {}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("node")
    config = folder / "vnpu.yaml"
    config.write_text(yaml.safe_dump(_configuration(folder / "models")))
    for name, arch in MODELS.items():
        out = folder / "models" / name
        subprocess.run([*VNPU, "make-model", str(out), "--arch", arch], check=True, stdout=subprocess.DEVNULL)
    node = start(config, folder / "run", "--without", BY_HAND)
    by_hand = None
    try:
        found = _wait(node.ready, READY_S)
        by_hand = _start_by_hand(config, folder)
        _wait(lambda: _phase(found, BY_HAND) in ("resident", "offloaded"), READY_S)
        yield Running(node, found, by_hand, config)
    finally:
        asyncio.run(node.stop())
        if by_hand is not None:
            by_hand.kill()
            by_hand.wait()


def _configuration(models: Path) -> dict[str, Any]:
    return {
        "etcd": "embedded",
        "node": "e2e",
        "devices": [{"id": 0, "driver": "host", "capacity": "160MiB"}],
        "gateway": {"listen": "127.0.0.1:0"},
        "admin": {"listen": "127.0.0.1:0", "api_key": "e2e-key"},
        "defaults": {"keep_alive": "1h", "min_residency": "500ms"},
        "models": {
            name: {"path": str(models / name), "kv_cache": "64MiB", "engine_args": dict(ENGINE_ARGS)} for name in MODELS
        },
    }


def _start_by_hand(config: Path, folder: Path) -> subprocess.Popen[bytes]:
    """The printed line alone, typed into a shell that knows nothing of vNPU."""
    show = [*VNPU, "engine", BY_HAND, "--config", str(config), "--run-dir", str(folder / "run"), "--print"]
    line = subprocess.run(show, check=True, capture_output=True, text=True).stdout
    environ = {name: value for name, value in os.environ.items() if not name.startswith("VNPU_")}
    with (folder / "by-hand.log").open("wb") as log:
        return subprocess.Popen(["bash", "-c", f"exec {line}"], env=environ, stdout=log, stderr=log)


def _wait(seek: Callable[[], T | None], limit_s: float) -> T:
    ends = time.monotonic() + limit_s
    while time.monotonic() < ends:
        if found := seek():
            return found
        time.sleep(0.2)
    raise AssertionError("in vain")


def _watch(found: RunFile) -> dict[str, Any]:
    """What `vnpu-watch --once --json` says."""
    command = [sys.executable, "-m", "coordinator.cli.watch", "--once", "--json", "--etcd", ",".join(found.etcd)]
    out: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return out


def _phase(found: RunFile, model: str) -> str:
    models = {row["model"]: row for row in _watch(found)["models"]}
    return str(models[model]["phase"]) if model in models else ""


def _owners(found: RunFile) -> set[str]:
    """Engines that have pages of the device."""
    [device] = _watch(found)["devices"]
    return {owner["engine"] for owner in device["owners"]}


async def _complete(running: Running, model: str, prompt: str, tokens: int = 12, **fields: Any) -> list[int]:
    body = {"model": model, "prompt": prompt, "max_tokens": tokens, "temperature": 0.0, "ignore_eos": True}
    body |= {"return_token_ids": True, **fields}
    timeout = aiohttp.ClientTimeout(total=PATIENCE_S)
    async with (
        aiohttp.ClientSession(timeout=timeout) as http,
        http.post(f"{running.found.gateway}/v1/completions", json=body) as reply,
    ):
        answer = await reply.json()
        assert reply.status == 200, answer
    ids: list[int] = answer["choices"][0]["token_ids"]
    return ids


async def _admin(running: Running, method: str, path: str) -> Any:
    headers = {"Authorization": "Bearer e2e-key"}
    url = f"{running.found.admin}{path}"
    async with aiohttp.ClientSession(headers=headers) as http, http.request(method, url) as reply:
        assert reply.status < 300, await reply.text()
        return await reply.json()


async def _restores(running: Running, model: str) -> int:
    decisions = (await _admin(running, "GET", "/v1/decisions?limit=1000"))["decisions"]
    return sum(1 for decision in decisions if (decision["engine"], decision["order"]) == (model, "restore"))


async def test_every_engine_is_a_member(running: Running) -> None:
    async with aiohttp.ClientSession() as http, http.get(f"{running.found.gateway}/v1/models") as reply:
        listed = {model["id"] for model in (await reply.json())["data"]}
    assert listed == set(MODELS)
    assert {row["model"] for row in _watch(running.found)["models"]} == set(MODELS)


async def test_switches_leave_every_output_as_it_was(running: Running) -> None:
    for model in MODELS:
        running.before[model] = await _complete(running, model, "the harbour at night", cache_salt="before")
        assert len(set(running.before[model])) > 2
    for turn in range(3):
        for model in MODELS:
            after = await _complete(running, model, "the harbour at night", cache_salt=f"turn {turn}")
            assert after == running.before[model]
    assert sum([await _restores(running, model) for model in MODELS]) >= 5


async def test_two_hundred_requests_to_a_sleeping_model_cause_one_restore(running: Running) -> None:
    await _admin(running, "POST", "/v1/models/org%2Fa/sleep")
    await asyncio.to_thread(_wait, lambda: _phase(running.found, "org/a") == "offloaded", PATIENCE_S)
    before = await _restores(running, "org/a")
    answers = await asyncio.gather(*(_complete(running, "org/a", f"number {n}:", 2) for n in range(200)))
    assert [len(answer) for answer in answers] == [2] * 200
    assert await _restores(running, "org/a") == before + 1


async def test_streams_end_whole(running: Running) -> None:
    body = {"model": BY_HAND, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 6, "stream": True}
    async with (
        aiohttp.ClientSession() as http,
        http.post(
            f"{running.found.gateway}/v1/chat/completions",
            json=body | {"ignore_eos": True, "stream_options": {"include_usage": True}},
        ) as reply,
    ):
        lines = [line async for line in reply.content if line.strip()]
    assert reply.content_type == "text/event-stream"
    assert lines[-1].strip() == b"data: [DONE]"
    *chunks, last = [json.loads(line.removeprefix(b"data: ")) for line in lines[:-1]]
    assert len(chunks) > 1  # on a crowded machine vLLM puts several tokens into one
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"
    assert last["usage"]["completion_tokens"] == 6


async def test_a_model_that_nobody_knows(running: Running) -> None:
    async with (
        aiohttp.ClientSession() as http,
        http.post(f"{running.found.gateway}/v1/completions", json={"model": "nobody", "prompt": "x"}) as reply,
    ):
        assert reply.status == 404
        error = (await reply.json())["error"]
    assert "org/a" in error["message"]


async def test_a_killed_engine_comes_back_and_the_others_go_on(running: Running) -> None:
    await _complete(running, "b", "be resident")
    old = _pid(running, "b")
    os.kill(old, signal.SIGKILL)
    for model in ("org/a", BY_HAND):
        assert await _complete(running, model, "the harbour at night", cache_salt="killed") == running.before[model]
    await asyncio.to_thread(_wait, lambda: _restarted(running, "b", old), READY_S)
    assert await _complete(running, "b", "the harbour at night", cache_salt="back") == running.before["b"]
    assert "b was killed by SIGKILL; restarting in" in (running.node.run_dir.root / "up.log").read_text()


def _pid(running: Running, model: str) -> int:
    """The engine's process as the run file names it."""
    return next(process.pid for process in running.node.run_dir.read().processes if process.name == model)


def _restarted(running: Running, model: str, old: int) -> bool:
    return _pid(running, model) not in (0, old) and _phase(running.found, model) in ("resident", "offloaded")


async def test_an_engine_started_by_hand_leaves_cleanly(running: Running) -> None:
    await _complete(running, BY_HAND, "be resident")
    family = psutil.Process(running.by_hand.pid).children(recursive=True)
    running.by_hand.send_signal(signal.SIGTERM)
    assert await asyncio.to_thread(running.by_hand.wait, PATIENCE_S) == 0  # nobody kills its server meanwhile
    await asyncio.to_thread(_wait, lambda: not _phase(running.found, BY_HAND), PATIENCE_S)
    await eventually(lambda: not any(alive(process.pid) for process in family))
    await asyncio.to_thread(_wait, lambda: BY_HAND not in _owners(running.found), PATIENCE_S)


def test_ctrl_c_leaves_nothing(running: Running) -> None:
    """Last: it ends the node."""
    found = running.node.run_dir.read()
    assert asyncio.run(running.node.stop()) in (0, 130)
    left = [process.name for process in found.processes if alive(process.pid)]
    assert left == []
    assert not Path(found.socket).exists()
    assert not running.node.run_dir.run_file.exists()
