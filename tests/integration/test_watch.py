"""`vnpu-watch` as a process, on a real etcd."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import msgspec

from coordinator.core import model
from coordinator.store import keys
from coordinator.store.base import Delete, Put
from tests.helpers.coordinator import coordinator
from tests.helpers.etcd import RealEtcd
from tests.helpers.stub_engine import node

ROOT = Path(__file__).parents[2]
DEVICE = model.Device(driver="host", capacity=1 << 30, chunk=1 << 21, epoch="e")


async def _put(etcd: RealEtcd, name: str) -> None:
    store = etcd.client()
    await store.txn([], [Put(keys.device(name), msgspec.json.encode(DEVICE))])
    await store.close()


def put(etcd: RealEtcd, name: str) -> None:
    asyncio.run(_put(etcd, name))


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "coordinator.cli.watch", *words]


def test_once_as_json_and_as_text(etcd: RealEtcd):
    put(etcd, "local/0")
    as_json = subprocess.run(command("--etcd", etcd.url, "--once", "--json"), cwd=ROOT, capture_output=True, check=True)
    assert [device["id"] for device in json.loads(as_json.stdout)["devices"]] == ["local/0"]
    text = subprocess.run(command("--etcd", etcd.url, "--once"), cwd=ROOT, capture_output=True, check=True, text=True)
    assert "local/0" in text.stdout
    assert "\033[" not in text.stdout


def test_each_change_is_one_line_of_json(etcd: RealEtcd):
    put(etcd, "local/0")
    with subprocess.Popen(command("--etcd", etcd.url, "--json"), cwd=ROOT, stdout=subprocess.PIPE) as watching:
        try:
            assert watching.stdout is not None
            json.loads(watching.stdout.readline())
            put(etcd, "local/1")
            while len(json.loads(watching.stdout.readline())["devices"]) < 2:
                pass
        finally:
            watching.kill()


def test_q_ends_it_and_gives_the_terminal_back(etcd: RealEtcd):
    put(etcd, "local/0")
    master, slave = pty.openpty()
    environ = {**os.environ, "TERM": "xterm", "COLUMNS": "150", "LINES": "40"}
    environ.pop("NO_COLOR", None)
    with subprocess.Popen(command("--etcd", etcd.url), cwd=ROOT, stdin=slave, stdout=slave, env=environ) as watching:
        os.close(slave)
        seen = b""
        while b"local/0" not in seen:
            seen += os.read(master, 4096)
        os.write(master, b"q")
        while True:  # until the other side is closed
            try:
                seen += os.read(master, 4096)
            except OSError:
                break
        assert watching.wait(60) == 0
    os.close(master)
    assert b"\x1b[?1049l" in seen  # the screen from before


def test_no_node_and_no_etcd_are_told_apart(tmp_path: Path):
    clean = {name: value for name, value in os.environ.items() if "ETCD" not in name}
    nowhere = subprocess.run(
        command("--run-dir", str(tmp_path), "--once"), cwd=ROOT, capture_output=True, text=True, env=clean, check=False
    )
    assert (nowhere.returncode, "no node is running" in nowhere.stderr) == (1, True)
    silent = subprocess.run(
        command("--etcd", "http://127.0.0.1:9", "--once"), cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (silent.returncode, "etcd at http://127.0.0.1:9 does not answer" in silent.stderr) == (1, True)


async def _decided(etcd: RealEtcd) -> None:
    spec = model.Spec(
        holder=model.Holder("qwen-a", "n"),
        model="qwen-a",
        url="http://127.0.0.1:1",
        devices=("local/0",),
        pid=1,
        boot_id="b",
        footprint=model.Bytes(),
    )
    left, cause = model.Order.OFFLOAD, "room for qwen-b"
    decision = model.Decision(
        n=7, at=1.0, order=left, engine="qwen-a", devices=("local/0",), cause=cause, wanted="b"
    )  # fmt: skip
    store = etcd.client()
    puts = [Put(keys.spec("qwen-a"), msgspec.json.encode(spec)), Put(keys.decision(7), msgspec.json.encode(decision))]
    await store.txn([], puts)
    await store.close()


def test_why(etcd: RealEtcd):
    asyncio.run(_decided(etcd))
    said = subprocess.run(command("why", "qwen-a", "--etcd", etcd.url), cwd=ROOT, capture_output=True, text=True)
    assert said.returncode == 0
    assert "qwen-a left on local/0 to make room for b" in said.stdout
    assert "because room for qwen-b" in said.stdout
    as_json = subprocess.run(command("why", "qwen-a", "--json", "--etcd", etcd.url), cwd=ROOT, capture_output=True)
    assert [told["n"] for told in json.loads(as_json.stdout)] == [7]
    unknown = subprocess.run(command("why", "x", "--etcd", etcd.url), cwd=ROOT, capture_output=True, text=True)
    assert (unknown.returncode, "known are: qwen-a" in unknown.stderr) == (1, True)
    wrong = subprocess.run(command("what", "--etcd", etcd.url), cwd=ROOT, capture_output=True, text=True)
    assert wrong.returncode == 2


async def _operated(etcd: RealEtcd, words: list[list[str]]) -> list[tuple[int, str, str]]:
    """What `vnpu-watch` says to each of `words` while a coordinator and two engines run; at the end b is resident."""
    store = etcd.client()
    await store.txn([], [Delete(keys.ROOT, prefix=True)])
    said = []
    async with coordinator(store) as c, node(store, {"a": 60, "b": 60}, 100) as n:
        assert (await c.ask("a"))[0] == 200
        for each in words:
            process = await asyncio.create_subprocess_exec(
                *command(*each, "--etcd", etcd.url), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
            out, err = await process.communicate()
            said.append((process.returncode or 0, out.decode(), err.decode()))
            if each == ["wake", "b"]:
                await n["b"].until_phase(model.Phase.RESIDENT)
    await store.close()
    return said


async def test_operators_commands_and_what_is_seen_of_them(etcd: RealEtcd):
    words = [
        ["pin", "a"],
        ["unpin", "a", "--json"],
        ["wake", "b"],
        ["events", "--once", "--json"],
        ["ps"],
        ["models"],
        ["pin", "x"],
    ]
    pin, unpin, wake, events, ps, models, unknown = await _operated(etcd, words)
    assert pin[:2] == (0, "pin a: accepted\n")
    assert json.loads(unpin[1])["policy"]["pin"] is False
    assert wake[:2] == (0, "wake b: accepted\n")
    told = [json.loads(line) for line in events[1].splitlines()]
    assert {each["kind"] for each in told} == {"decision"}
    assert "a" in {each["about"] for each in told}
    assert "resident" in ps[1]
    assert models[1] == "a\nb\n"
    assert unknown[0] == 1
    assert "there are: a, b, c" in unknown[2]


def test_the_screen_takes_keys(etcd: RealEtcd):
    put(etcd, "local/0")
    asyncio.run(_decided(etcd))
    master, slave = pty.openpty()
    environ = {**os.environ, "TERM": "xterm", "COLUMNS": "150", "LINES": "40"}
    with subprocess.Popen(command("--etcd", etcd.url), cwd=ROOT, stdin=slave, stdout=slave, env=environ) as watching:
        os.close(slave)
        until(master, b"qwen-a")
        os.write(master, b"j")
        os.write(master, b"z")
        until(master, b"sleep qwen-a? y / n")
        os.write(master, b"y")
        until(master, b"nobody leads")
        os.write(master, b"/zzz")
        until(master, b"none is like that")
        os.write(master, b"\rq")
        while True:
            try:
                os.read(master, 4096)
            except OSError:
                break
        assert watching.wait(60) == 0
    os.close(master)


def until(master: int, words: bytes) -> None:
    seen = b""
    while words not in seen:
        seen += os.read(master, 65536)
