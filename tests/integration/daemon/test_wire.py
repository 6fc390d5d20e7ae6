"""What a peer can send the daemon that is not a request: a defined end, and the daemon lives on."""

from __future__ import annotations

import array
import asyncio
import json
import os
import socket
import struct
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from native import protocol
from native.link import DaemonUnavailable, read_stats
from native.protocol import MAX_FRAME, Code, Hello, Kind, Map, Refused, SealMaster, Stats
from tests.helpers.daemon import DaemonProcess
from tests.helpers.eventually import eventually
from tests.helpers.leader import Leader
from tests.helpers.puppet_engine import CHUNK, puppet_engine

PATIENCE_S = 60.0
LENGTH = struct.Struct(">I")


class Wire:
    """A bare connection."""

    def __init__(self, path: Path) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.setblocking(False)
        self.sock.connect(str(path))

    async def send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.sock, data)

    async def ask(self, request: protocol.Request) -> protocol.Reply:
        await self.send(frame(protocol.encode(request)))
        return await self.reply()

    async def reply(self) -> protocol.Reply:
        (length,) = LENGTH.unpack(await self.exactly(LENGTH.size))
        reply: protocol.Reply = protocol.decode_reply(await self.exactly(length))
        return reply

    async def refused(self) -> Code:
        """The refusal, and then the end of the connection."""
        reply = await self.reply()
        assert isinstance(reply, Refused)
        assert await self.ended()
        return reply.code

    async def ended(self) -> bool:
        async with asyncio.timeout(PATIENCE_S):
            try:
                return await asyncio.get_running_loop().sock_recv(self.sock, 1) == b""
            except ConnectionResetError:
                return True

    async def exactly(self, size: int) -> bytes:
        data = b""
        async with asyncio.timeout(PATIENCE_S):
            while len(data) < size:
                part = await asyncio.get_running_loop().sock_recv(self.sock, size - len(data))
                if not part:
                    raise ConnectionResetError
                data += part
        return data

    def close(self) -> None:
        self.sock.close()


def frame(body: bytes) -> bytes:
    return LENGTH.pack(len(body)) + body


@pytest.fixture
async def wire(daemon: DaemonProcess) -> AsyncIterator[Wire]:
    """And afterwards the daemon is as well as ever."""
    wire = Wire(daemon.socket)
    yield wire
    wire.close()
    check = Wire(daemon.socket)
    assert isinstance(await check.ask(Stats()), protocol.Facts)
    check.close()


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"\xc1", id="never used in msgpack"),
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", id="another protocol"),
        pytest.param(b"\x91" * 100_000, id="deep"),
        pytest.param(b"\x81\xa4type\xa5Enter", id="fields missing"),
        pytest.param(b"\x81\xa4type\xa4Nope", id="unknown request"),
        pytest.param(protocol.encode(Stats())[:-1], id="cut"),
        pytest.param(protocol.encode(Map("0", Kind.KV, 100_000, 1, 1.0)), id="too many chunks"),
        pytest.param(protocol.encode(Hello("e" * 300, "n", "worker")), id="name too long"),
        pytest.param(protocol.encode(Hello("e", "n", "admin")), id="unknown role"),
    ],
)
async def test_a_frame_that_is_no_request_is_refused(wire: Wire, body: bytes) -> None:
    await wire.send(frame(body))
    assert await wire.refused() is Code.BAD_REQUEST


async def test_an_oversize_frame_is_refused_before_it_is_read(wire: Wire) -> None:
    await wire.send(LENGTH.pack(MAX_FRAME + 1))
    assert await wire.refused() is Code.BAD_REQUEST


async def test_a_peer_that_hangs_up_within_a_frame(wire: Wire) -> None:
    await wire.send(LENGTH.pack(100) + b"half")
    wire.close()


async def test_the_first_request_is_hello(wire: Wire) -> None:
    reply = await wire.ask(SealMaster("d"))
    assert isinstance(reply, Refused)
    assert reply.code is Code.FORBIDDEN
    assert await wire.ended()


async def test_two_requests_at_once_are_answered_in_order(wire: Wire) -> None:
    one = frame(protocol.encode(Stats()))
    await wire.send(one + one[:7])
    assert isinstance(await wire.reply(), protocol.Facts)
    await wire.send(one[7:])
    assert isinstance(await wire.reply(), protocol.Facts)


async def test_descriptors_that_nobody_asked_for_are_closed(wire: Wire, daemon: DaemonProcess) -> None:
    before = daemon.open_descriptors()
    sent = [os.open("/dev/null", os.O_RDONLY) for _ in range(50)]
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", sent))]
    assert wire.sock.sendmsg([frame(protocol.encode(Stats()))], ancillary)
    assert isinstance(await wire.reply(), protocol.Facts)
    for descriptor in sent:
        os.close(descriptor)
    # This connection and the pidfd of this process; what the daemon opens for a moment, as it measures, goes again.
    await eventually(lambda: daemon.open_descriptors() <= before + 2)


async def test_stats_need_no_engine(daemon: DaemonProcess) -> None:
    facts = json.loads(await asyncio.to_thread(read_stats, str(daemon.socket)))
    assert (facts["node"], facts["pid"], sorted(facts["devices"])) == (daemon.node, daemon.pid, ["0", "1"])
    with pytest.raises(DaemonUnavailable):
        await asyncio.to_thread(read_stats, str(daemon.socket) + "not")


async def test_only_the_owner_may_open_the_socket(daemon: DaemonProcess) -> None:
    assert daemon.socket.stat().st_mode & 0o777 == 0o600


async def test_a_peer_that_hangs_up_before_the_answer_gives_the_pages_back(
    daemon: DaemonProcess, leader: Leader
) -> None:
    """Whether it hung up while the daemon worked, while it answered, or with the answer unread."""
    async with puppet_engine(daemon, leader) as a:
        fence = await a.begin()
        for _ in range(2):
            await a.worker.call("map_and_hang_up", a.device, 20)
        a.chunks = await a.worker.map(a.device, 12, 1)
        await a.leave(fence)
        assert (await leader.closed(a.device)).charged == 12 * CHUNK


@pytest.mark.parametrize("daemon_options", [{"descriptors": 128, "devices": ("0:host:32MiB",)}])
async def test_out_of_descriptors_it_lives_on(own_daemon: DaemonProcess, leader: Leader) -> None:
    async with puppet_engine(own_daemon, leader) as a:
        flood = [Wire(own_daemon.socket) for _ in range(200)]
        await own_daemon.until_said("Too many open files")
        fence = await a.begin()
        await a.worker.map(a.device, 2, 1)
        for wire in flood:
            wire.close()
        await a.leave(fence)
        assert (await leader.closed(a.device, fence)).charged == 2 * CHUNK
        async with puppet_engine(own_daemon, leader, "b") as b:
            await b.restore(2, 2)
