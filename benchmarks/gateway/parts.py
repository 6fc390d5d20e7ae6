"""The processes: the stub engine, the gateway, nginx where it is installed, `vnpu-watch` on a terminal."""

from __future__ import annotations

import asyncio
import os
import pty
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp

from benchmarks.coordinator.registered import register
from coordinator.core.model import Heartbeat
from coordinator.embedded import EmbeddedEtcd, find_binary
from coordinator.store import connect, keys
from coordinator.store.base import Put, Store
from coordinator.store.codec import encode
from coordinator.supervise.ports import free_port

FILES = 65_536
LIMIT_S = 60.0
LINE = 64 << 20
NGINX = """
daemon off; worker_processes 1; worker_rlimit_nofile {files}; pid {folder}/pid; error_log {folder}/error.log;
events {{ worker_connections 8192; }}
http {{
  access_log {folder}/access.log; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  upstream engine {{ server 127.0.0.1:{engine}; keepalive 512; }}
  server {{
    listen 127.0.0.1:{port};
    keepalive_requests 1000000;
    location / {{
      proxy_pass http://engine; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off;
    }}
  }}
}}
"""


class Part:
    """A process that has said its port."""

    def __init__(self, process: asyncio.subprocess.Process, port: int) -> None:
        self._process = process
        self.port = port

    async def say(self, line: str) -> None:
        """To its standard input."""
        if self._process.stdin is None:
            raise RuntimeError("it listens to nobody")
        self._process.stdin.write(line.encode() + b"\n")
        await self._process.stdin.drain()

    async def ask(self, line: str, seconds: float) -> bytes:
        """What it says to a line, within so many seconds."""
        await self.say(line)
        if self._process.stdout is None:
            raise RuntimeError("it says nothing")
        async with asyncio.timeout(seconds):
            return await self._process.stdout.readline()

    @property
    def cpu(self) -> float:
        """CPU seconds of it and its children."""
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        return _cpu_seconds(self._process.pid) + sum(_cpu_seconds(int(child)) for child in children)

    @property
    def rss(self) -> int:
        """Resident bytes, from /proc."""
        pages = int(Path(f"/proc/{self._process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")


@asynccontextmanager
async def python(module: str, log: Path) -> AsyncIterator[Part]:
    """`benchmarks.gateway.<module>`; killed at the end."""
    with log.open("wb") as file:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", f"benchmarks.gateway.{module}"),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=file, limit=LINE,
        )  # fmt: skip
    try:
        async with asyncio.timeout(LIMIT_S):
            line = await process.stdout.readline() if process.stdout is not None else b""
        yield Part(process, int(line))
    finally:
        process.kill()
        await process.wait()


@asynccontextmanager
async def nginx(engine: int, folder: Path) -> AsyncIterator[Part | None]:
    """One worker that passes everything on; None: it is not installed."""
    program = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if program is None:
        yield None
        return
    port = free_port()
    config = folder / "nginx.conf"
    config.write_text(NGINX.format(files=FILES, folder=folder, engine=engine, port=port))
    process = await asyncio.create_subprocess_exec(
        *(program, "-p", str(folder), "-c", str(config)), stderr=asyncio.subprocess.DEVNULL
    )
    try:
        await _listens(port)
        yield Part(process, port)
    finally:
        process.terminate()
        await process.wait()


async def until_metric(port: int, series: str, value: int) -> None:
    """The gateway's `/metrics` says so."""
    wanted = f"{series} {value:.1f}\n"
    async with asyncio.timeout(LIMIT_S), aiohttp.ClientSession() as http:
        while True:
            async with http.get(f"http://127.0.0.1:{port}/metrics") as answer:
                if wanted in await answer.text():
                    return
            await asyncio.sleep(0.2)


async def watch_share(models: int, seconds: float) -> float:
    """Share of a core that `vnpu-watch` takes on a terminal of 50 lines, where so many models stand and one counter a
    second is all that moves."""
    with tempfile.TemporaryDirectory(prefix="vnpu-watch-") as name:
        folder = Path(name)
        etcd = EmbeddedEtcd(folder / "etcd", folder / "etcd.log", binary=find_binary({}))
        await etcd.start()
        store = connect([etcd.url], environ={})
        try:
            await register(store, models)
            beating = asyncio.create_task(_beat(store))
            try:
                return await _watched(etcd.url, seconds)
            finally:
                beating.cancel()
                await asyncio.wait((beating,))
        finally:
            await store.close()
            await etcd.stop()


async def _beat(store: Store) -> None:
    """As a leader does."""
    n = 0
    while True:
        await store.txn([], [Put(keys.HEARTBEAT, encode(Heartbeat(n=n)))])
        n += 1
        await asyncio.sleep(1.0)


async def _watched(url: str, seconds: float) -> float:
    ours, its = pty.openpty()
    environ = {**os.environ, "TERM": "xterm-256color", "LINES": "50", "COLUMNS": "160"}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "coordinator.cli.watch", "--etcd", url),
        stdin=its, stdout=its, stderr=its, env=environ,
    )  # fmt: skip
    os.close(its)
    shown = asyncio.Event()

    def read() -> None:
        try:
            if os.read(ours, 1 << 16):
                shown.set()
        except OSError:  # it has ended
            asyncio.get_running_loop().remove_reader(ours)

    asyncio.get_running_loop().add_reader(ours, read)
    try:
        async with asyncio.timeout(LIMIT_S):
            await shown.wait()
        await asyncio.sleep(min(5.0, seconds))  # the first picture is drawn
        before = _cpu_seconds(process.pid)
        await asyncio.sleep(seconds)
        return (_cpu_seconds(process.pid) - before) / seconds
    finally:
        asyncio.get_running_loop().remove_reader(ours)
        process.kill()
        await process.wait()
        os.close(ours)


def _cpu_seconds(pid: int) -> float:
    """Of user and system (proc(5), fields 14 and 15 of stat)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def _listens(port: int) -> None:
    async with asyncio.timeout(LIMIT_S):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.05)
                continue
            writer.close()
            return
