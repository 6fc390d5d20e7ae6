"""A process of an engine, for tests of the daemon: a real one, to be killed and stopped, moved by lines of JSON.

In the test: `Puppet.start(…)`, then its methods. In the process (`python tests/helpers/puppet.py …`): the real client,
and real shared mappings of the chunks it was given.
"""

from __future__ import annotations

import asyncio
import json
import mmap
import os
import secrets
import socket
import sys
import time
from pathlib import Path
from typing import Any

from tests.helpers.child import PATIENCE_S, Child

ROOT = Path(__file__).resolve().parents[2]


class PuppetRefused(Exception):
    """The daemon refused; `code` as in native.protocol."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code


class Puppet(Child):
    """The test's end."""

    @classmethod
    async def start(cls, socket: Path, engine: str, nonce: str, role: str, rank: int = 0) -> Puppet:
        process = await asyncio.create_subprocess_exec(
            sys.executable, __file__, str(socket), engine, nonce, role, str(rank),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        return cls(process)

    async def call(self, do: str, *args: object) -> object:
        """Raises `PuppetRefused` where the daemon refused, `ConnectionError` where the process died."""
        self.send(do, *args)
        return await self.answer()

    def send(self, do: str, *args: object) -> None:
        """The call alone: `answer` waits for what comes of it."""
        if self._process.stdin is None:
            raise ConnectionError("no pipe")
        self._process.stdin.write(json.dumps([do, *args]).encode() + b"\n")

    async def answer(self) -> object:
        if self._process.stdout is None:
            raise ConnectionError("no pipe")
        async with asyncio.timeout(PATIENCE_S):
            line = await self._process.stdout.readline()
        if not line:
            raise ConnectionError("the puppet died")
        kind, value = json.loads(line)
        if kind == "refused":
            raise PuppetRefused(*value)
        if kind == "failed":
            raise RuntimeError(value)
        return value

    async def hello(self) -> object:
        return await self.call("hello")

    async def enter(self, device: str, epoch: str, revision: int, timeout_s: float = 30.0) -> object:
        return await self.call("enter", device, epoch, revision, timeout_s)

    async def leave(self, device: str, epoch: str, revision: int) -> object:
        return await self.call("leave", device, epoch, revision)

    async def map(
        self, device: str, count: int, fill: int, kind: str = "weights", over: bool = False, kv: int = 0
    ) -> list[int]:
        """Map chunks, those for `kv` behind, fill each with the byte `fill`; ids. All but those that come to be written
        `over` must be zero."""
        ids = await self.call("map", device, kind, count, fill, over, kv)
        assert isinstance(ids, list)
        return ids

    async def unmap(self, device: str, chunks: list[int]) -> object:
        return await self.call("unmap", device, chunks)

    async def fills(self) -> object:
        """The byte each mapped chunk is filled with, by id; None where it is not uniform."""
        return await self.call("fills")


def _main(path: str, engine: str, nonce: str, role: str, rank: str) -> None:
    hands = _Hands(path, engine, nonce, role, int(rank))
    for line in sys.stdin:
        sys.stdout.write(json.dumps(_answer(hands, line)) + "\n")
        sys.stdout.flush()


def _answer(hands: _Hands, line: str) -> tuple[str, object]:
    from native._native import DriverError
    from native.link import DaemonError, DaemonRefused

    do, *args = json.loads(line)
    try:
        return "done", getattr(hands, do)(*args)
    except DaemonRefused as refused:
        return "refused", (refused.code.value, str(refused))
    except (DaemonError, DriverError) as error:
        return "failed", str(error)


class _Hands:
    """What a puppet can do."""

    def __init__(self, *whom: Any) -> None:
        from native.client import Client

        self.whom = whom
        self.client = Client(*whom)
        self.mapped: dict[int, mmap.mmap] = {}
        self.viewed: dict[int, list[mmap.mmap]] = {}
        self.master: int | None = None
        self.listener: Any = None
        self.asked: list[object] = []
        self.region: Any = None
        self.unread: Any = None

    def hello(self) -> dict[str, int]:
        return self.client.connect().chunk

    def reconnect(self) -> None:
        """Hang up, and go on with a new connection."""
        from native.client import Client

        kept = self.client.kept
        self.client.close()
        self.client = Client(*self.whom, kept=kept)
        self.client.connect()

    def map_and_hang_up(self, device: str, times: int) -> None:
        """Ask for a chunk and do not wait for the answer, on connections of their own."""
        from native import protocol

        path, engine, nonce, role, rank = self.whom
        for _ in range(times):
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
                sock.connect(path)
                for request in (
                    protocol.Hello(engine, nonce, role, rank),
                    protocol.Map(device, protocol.Kind.KV, 1, secrets.randbits(60), 5.0),
                ):
                    body = protocol.encode(request)
                    sock.sendall(len(body).to_bytes(4, "big") + body)
                    if isinstance(request, protocol.Hello):
                        assert sock.recv(1 << 16)

    def enter(self, device: str, epoch: str, revision: int, timeout_s: float) -> list[object]:
        opened = self.client.enter(device, epoch, revision, timeout_s)
        return [opened.epoch, opened.revision, opened.order, opened.bytes]

    def leave(self, device: str, epoch: str, revision: int) -> None:
        self.client.leave(device, epoch, revision)

    def await_open(self, device: str, timeout_s: float) -> int:
        return self.client.await_open(device, timeout_s).revision

    def map(self, device: str, kind: str, count: int, fill: int, over: bool = False, kv: int = 0) -> list[int]:
        from native.protocol import Kind

        chunks = self.client.map(device, Kind(kind), count, overwritten=over, kv=kv)
        for place, chunk in enumerate(chunks):
            self.mapped[chunk.id] = mmap.mmap(chunk.fd, chunk.size)
            self.client.kept.put_chunk(device, chunk.id, chunk.fd)
            if not (over and place < count) and _fill(self.mapped[chunk.id]) != 0:
                raise RuntimeError(f"chunk {chunk.id} shows what another owner left")
            self.mapped[chunk.id][:] = bytes([fill]) * chunk.size
        return [chunk.id for chunk in chunks]

    def unmap(self, device: str, chunks: list[int]) -> None:
        for chunk in chunks:
            if chunk in self.mapped:
                self.mapped.pop(chunk).close()
        self.client.kept.drop_chunks(device, chunks)
        self.client.unmap(device, chunks)

    def leave_behind(self, device: str, chunks: list[int], content: str) -> None:
        """Unmap these, which hold `content` in this order."""
        for chunk in chunks:
            self.mapped.pop(chunk).close()
        self.client.kept.drop_chunks(device, chunks)
        self.client.unmap(device, chunks, content=content, holding=len(chunks))

    def come_back(self, device: str, count: int, fill: int, content: str) -> list[tuple[int, bool]]:
        """Map so many for `content`: what still holds it must be filled with `fill`, the rest is filled. Their ids, and
        which still held it."""
        from native.protocol import Kind

        chunks = self.client.map(device, Kind.WEIGHTS, count, overwritten=True, content=content)
        for chunk in chunks:
            self.mapped[chunk.id] = mmap.mmap(chunk.fd, chunk.size)
            self.client.kept.put_chunk(device, chunk.id, chunk.fd)
            if chunk.still and _fill(self.mapped[chunk.id]) != fill:
                raise RuntimeError(f"chunk {chunk.id} does not hold what was left there")
            self.mapped[chunk.id][:] = bytes([fill]) * chunk.size
        return [(chunk.id, chunk.still) for chunk in chunks]

    def open_region(self, device: str, driver: str, hint: int, chunks: int, chunk: int) -> None:
        from tests.helpers.puppet_region import RegionHands

        self.region = RegionHands(self.client, device, driver, hint, chunks, chunk)

    def in_region(self, do: str, *args: Any) -> Any:
        """What `RegionHands` can do."""
        return getattr(self.region, do)(*args)

    def unmap_without_unmapping(self, device: str, chunks: list[int]) -> None:
        self.client.unmap(device, chunks)

    def close_without_unmapping(self, view: int) -> None:
        self.client.close_view(view)

    def fills(self) -> dict[int, int | None]:
        return {chunk: _fill(content) for chunk, content in self.mapped.items()}

    def create_master(self, size: int) -> int:
        self.master, size = self.client.create_master(size)
        return size

    def write_master(self, text: str) -> None:
        assert self.master is not None
        os.pwrite(self.master, text.encode(), 0)

    def seal_master(self, digest: str) -> None:
        self.client.seal_master(digest)
        if self.master is not None:
            os.close(self.master)
            self.master = None

    def read_master(self, digest: str, length: int) -> str | None:
        """None: there is none; raises RuntimeError where it could be written to."""
        opened = self.client.open_master(digest)
        if opened is None:
            return None
        descriptor, _ = opened
        try:
            os.pwrite(descriptor, b"!", 0)
        except OSError:
            return os.pread(descriptor, length, 0).decode()
        finally:
            os.close(descriptor)
        raise RuntimeError("a sealed master could be written to")

    def keep_master(self, digest: str) -> None:
        """Open it, and hand it back to a restarted daemon."""
        opened = self.client.open_master(digest)
        assert opened is not None
        self.client.kept.put_master(digest, opened[0])

    def make_or_open_master(self, digest: str, size: int) -> None:
        """As an engine at the end of its start-up."""
        opened = self.client.open_master(digest)
        if opened is None:
            self.create_master(size)
            self.write_master(digest)
            self.seal_master(digest)
            opened = self.client.open_master(digest)
        assert opened is not None
        assert os.pread(opened[0], len(digest), 0).decode() == digest
        self.client.kept.put_master(digest, opened[0])

    def keep_instead(self, device: str, chunk: int, path: str, size: int) -> None:
        """Hand a file back that is not the chunk."""
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        os.truncate(descriptor, size)
        self.client.kept.put_chunk(device, chunk, descriptor)

    def swap_kept(self, device: str, one: int, other: int) -> None:
        """Hand each of two chunks back as the other."""
        held = self.client.kept._chunks[device]
        held[one], held[other] = held[other], held[one]

    def hand_back_again(self, device: str) -> None:
        """To a daemon that misses nothing; and descriptors beside calls that take none."""
        from native.kept import Kept

        kept, real = Kept(), self.client.kept
        kept._generation, kept._chunks, kept._masters = 1, real._chunks, real._masters
        sibling = self.client.sibling()
        sibling.kept = kept
        sibling.connect()
        sibling.close()

    def seal_and_keep_writing(self, digest: str) -> None:
        self.client.seal_master(digest)

    def release_master(self, digest: str) -> None:
        self.client.kept.drop_master(digest)
        self.client.release_master(digest)

    def listen(self, obedient: bool) -> None:
        """Hear what the daemon asks; do it, or only note it."""
        from native.listener import Listener

        def let_go(view: int) -> None:
            self.asked.append(view)
            if obedient:
                self.close_view(view)

        def spare(digest: str) -> None:
            self.asked.append(digest)
            if obedient:
                self.release_master(digest)

        self.listener = Listener(self.client, let_go, spare)
        self.listener.start()

    def await_heard(self, what: object) -> None:
        while what not in self.asked:
            time.sleep(0.01)

    def heard(self) -> list[object]:
        return self.asked

    def offer_view(self, device: str, chunks: list[int], to: str) -> int:
        return self.client.offer_view(device, chunks, to)

    def open_view(self, view: int) -> dict[int, int | None]:
        """The byte each of its chunks is filled with; raises RuntimeError where it could be mapped to write."""
        opened = self.client.open_view(view)
        self.viewed[view] = []
        for chunk in opened.chunks:
            try:
                mmap.mmap(chunk.fd, chunk.size)
                raise RuntimeError("a view could be written to")
            except PermissionError:
                self.viewed[view].append(mmap.mmap(chunk.fd, chunk.size, prot=mmap.PROT_READ))
            os.close(chunk.fd)
        return self.seen(view)

    def open_view_anew(self, view: int) -> None:
        """Beside what this process has mapped of it already."""
        self.client.open_view(view)

    def seen(self, view: int) -> dict[int, int | None]:
        return {number: _fill(content) for number, content in enumerate(self.viewed[view])}

    def close_view(self, view: int) -> None:
        for content in self.viewed.pop(view, []):
            content.close()
        self.client.close_view(view)

    def offer_share(self, device: str, digest: str, chunks: list[int]) -> None:
        self.client.offer_share(device, digest, chunks)

    def open_share(self, device: str, digest: str) -> list[list[int | None]] | None:
        """Id of each chunk and the byte it is filled with; None: nobody offers it. Raises RuntimeError where it could
        be mapped to write."""
        opened = self.client.open_share(device, digest)
        if opened is None:
            return None
        for chunk in opened:
            try:
                mmap.mmap(chunk.fd, chunk.size)
                raise RuntimeError("a share could be written to")
            except PermissionError:
                self.mapped[chunk.id] = mmap.mmap(chunk.fd, chunk.size, prot=mmap.PROT_READ)
            os.close(chunk.fd)
        return [[chunk.id, _fill(self.mapped[chunk.id])] for chunk in opened]

    def open_share_unread(self, device: str, digest: str) -> None:
        """On a connection of its own, whose answer is never read; until `hang_up`."""
        from native import protocol

        path, engine, nonce, role, rank = self.whom
        self.unread = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.unread.connect(path)
        for request in (protocol.Hello(engine, nonce, role, rank), protocol.OpenShare(device, digest)):
            body = protocol.encode(request)
            self.unread.sendall(len(body).to_bytes(4, "big") + body)
            if isinstance(request, protocol.Hello):
                assert self.unread.recv(1 << 16)
        assert self.unread.recv(1, socket.MSG_PEEK)

    def hang_up(self) -> None:
        self.unread.close()

    def close_share(self, device: str, digest: str, chunks: list[int]) -> None:
        for chunk in chunks:
            if chunk in self.mapped:
                self.mapped.pop(chunk).close()
        self.client.close_share(device, digest)

    def revoke_view(self, view: int, timeout_s: float) -> None:
        self.client.revoke_view(view, timeout_s)

    def report_host(self, saved_kv: int) -> None:
        self.client.report_host(saved_kv)

    def stats(self) -> object:
        return json.loads(self.client.stats())

    def descriptors(self) -> int:
        return sum(1 for _ in Path("/proc/self/fd").iterdir())


def _fill(content: mmap.mmap) -> int | None:
    first = content[0]
    return first if content[:] == bytes([first]) * len(content) else None


if __name__ == "__main__":
    _main(*sys.argv[1:])
