"""What a worker asks its agent, and what the agent has seen of other engines."""

from __future__ import annotations

import asyncio
import socket
import struct
from pathlib import Path

import pytest

from coordinator.core.model import Bytes, Load, Seed, Step, Value
from coordinator.store import keys
from coordinator.store.base import Change, Changes, KeyValue, Listing
from coordinator.store.codec import encode
from engine_patch.desk import Answer, Desk, Find, Publish, Request, Settled, open_desk
from engine_patch.report import Report
from engine_patch.seeds import Found, Seeds
from transfer.errors import TransferError

REPORT = Report(rank=1, pid=7, turn=3, held=Bytes(weights=5), steps=(Step("copy", 0.1),), restored=5)
SEED = Seed(host="10.0.0.7", port=29000, family="f", total=10, have=3)


def kv(key: str, value: Value | bytes, revision: int = 1) -> KeyValue:
    data = value if isinstance(value, bytes) else encode(value)
    return KeyValue(key=key, value=data, create_revision=revision, mod_revision=revision, lease=1)


def test_seeds_are_found_by_fingerprint_and_by_family_with_the_load_of_their_engine():
    seeds = Seeds()
    listing = [
        kv(keys.seed("org/a", "x1"), SEED),
        kv(keys.load("org/a"), Load(running=2, waiting=1)),
        kv(keys.seed("b", "x2"), SEED),
        kv(keys.seed("c", "x1"), b"{}"),
        kv(keys.spec("d"), b"whatever"),
    ]
    seeds.apply(Listing(listing, 5))
    assert seeds.find(fingerprint="x1") == (Found("org/a", "x1", SEED, 3),)
    assert [found.engine for found in seeds.find(family="f")] == ["b", "org/a"]
    assert seeds.find(family="g") == seeds.find() == ()


def test_seeds_are_found_by_checkpoint_and_by_kin():
    seeds = Seeds()
    seed = Seed(host="h", port=1, family="f", total=1, checkpoint="c", kin="k")
    seeds.apply(Listing([kv(keys.seed("a", "x"), SEED), kv(keys.seed("b", "x"), seed)], 1))
    assert [found.engine for found in seeds.find(checkpoint="c")] == ["b"]
    assert [found.engine for found in seeds.find(kin="k")] == ["b"]
    assert seeds.find(checkpoint="k") == seeds.find(kin="c") == ()


def test_seeds_follow_changes():
    seeds = Seeds()
    seeds.apply(Listing([kv(keys.seed("a", "x"), SEED), kv(keys.load("a"), Load(running=1))], 1))
    gone = [Change(keys.seed("a", "x"), None, 2), Change(keys.load("a"), None, 2)]
    seeds.apply(Changes([Change(keys.seed("b", "x"), kv(keys.seed("b", "x"), SEED), 2), *gone], 2))
    assert [found.engine for found in seeds.find(fingerprint="x")] == ["b"]
    seeds.apply(Listing([], 3))
    assert seeds.find(fingerprint="x") == ()


async def test_a_worker_asks_and_tells():
    heard: list[Request] = []

    def answer(request: Request) -> Answer:
        heard.append(request)
        return Answer((Found("a", "x", SEED, 7),) if isinstance(request, Find) else ())

    async with open_desk(answer) as path:
        assert Path(path).parent.stat().st_mode & 0o777 == 0o700
        desk = Desk(path)
        assert await asyncio.to_thread(desk.find, fingerprint="x") == (Found("a", "x", SEED, 7),)
        await asyncio.to_thread(desk.publish, "x", SEED)
        await asyncio.to_thread(desk.settled, REPORT)
    assert heard == [Find("x"), Publish("x", SEED), Settled(REPORT)]
    assert not Path(path).parent.exists()
    with pytest.raises(TransferError, match="agent does not answer"):
        await asyncio.to_thread(desk.find, family="f")


@pytest.mark.parametrize("data", [b"\xff\xff\xff\xff", struct.pack(">I", 3) + b"\xc1\xc1\xc1", b"\0"])
async def test_garbage_is_hung_up_on_and_the_next_call_is_answered(data: bytes):
    def ask(path: str) -> bytes:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(30)
            sock.connect(path)
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            return sock.recv(100)

    async with open_desk(lambda request: Answer()) as path:
        assert await asyncio.to_thread(ask, path) == b""
        assert await asyncio.to_thread(Desk(path).find, family="f") == ()


def test_a_seed_is_whole_when_all_of_it_is_there():
    assert not SEED.whole
    assert Seed(host="h", port=1, family="f", total=10, have=10).whole
    assert not Seed(host="h", port=1, family="f").whole
