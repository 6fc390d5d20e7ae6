"""A tensor-parallel engine over two host devices beside an engine on the first of them, on a node that `vnpu up` runs.
Device 0 holds one of the two. The engine's ranks share layers, as the node's file says (`sharded_linear`), through all
switches and kills. One node for the whole file: two engine starts, and one more after a rank was killed."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import psutil
import pytest
import pytest_asyncio
import yaml

from coordinator.core.model import Device, Holder, Order, Residency, Seat, Spec, Token, Value
from coordinator.demo.node import Node, start
from coordinator.picture import Picture, identify
from coordinator.sizes import parse_size
from coordinator.store import connect
from coordinator.store.base import Changes, Store
from coordinator.store.codec import decode
from coordinator.store.keys import ROOT
from coordinator.supervise.layout import RunFile
from coordinator.supervise.readiness import UP
from tests.helpers.engine_file import made, marks

pytestmark = marks()

PATIENCE_S = 600.0
PAIR, SOLO = "pair", "solo"
SHARED, DEPTH = "fused_qkv_a_proj", 4
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    PAIR: ("deepseek", {"device": [0, 1], "sharded_linear": [SHARED]}),
    SOLO: ("llama", {"device": 0}),
}
BOTH = ("e2e/0", "e2e/1")
CAPACITY = "112MiB"
PROMPT = "the harbour at night"
ENGINE_ARGS = {"dtype": "float32", "max_model_len": 512, "max_num_seqs": 4, "block_size": 32, "enforce_eager": True}
V = TypeVar("V", bound=Value)


class Chronicle:
    """Every change of the store since before the node was started, and the picture that they make."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.picture = Picture()
        self.history: list[Changes] = []
        self._changed = asyncio.Condition()

    async def follow(self) -> None:
        async with aclosing(self.store.watch(ROOT, 1)) as watch:
            async for changes in watch:
                async with self._changed:
                    self.history.append(changes)
                    self.picture.change(changes)
                    self._changed.notify_all()

    async def until(self, holds: Callable[[Picture], bool]) -> None:
        async with asyncio.timeout(PATIENCE_S), self._changed:
            await self._changed.wait_for(lambda: holds(self.picture))

    def granted(self) -> list[tuple[Order, str]]:
        """Order and engine of each seat transaction, in order."""
        transactions = (put(changes, Seat) for changes in self.history)
        seats = [next(iter(seats.values())) for seats in transactions if seats]
        return [(seat.order, seat.holder.engine) for seat in seats]


def put(changes: Changes, kind: type[V]) -> dict[str, V]:
    """What one revision put of one kind, by device (or whose ever it is)."""
    known = ((identify(change.key), change.kv) for change in changes.changes)
    return {which[1]: decode(kind, kv.value) for which, kv in known if which and which[0] is kind and kv}


class Running:
    """The node, what happened in its store, and the first answers of both engines."""

    def __init__(self, node: Node, found: RunFile, chronicle: Chronicle) -> None:
        self.node = node
        self.found = found
        self.chronicle = chronicle
        self.before: dict[str, list[int]] = {}

    async def complete(self, model: str, salt: str) -> list[int]:
        """Greedy tokens."""
        status, answer = await self.answer(model, salt)
        assert status == 200, answer
        ids: list[int] = answer["choices"][0]["token_ids"]
        return ids

    async def answer(self, model: str, salt: str) -> tuple[int, Any]:
        """Status and answer of one greedy completion; a new `salt` finds nothing in the prefix cache."""
        body = {"model": model, "prompt": PROMPT, "max_tokens": 16, "temperature": 0.0, "cache_salt": salt}
        body |= {"ignore_eos": True, "return_token_ids": True}
        timeout = aiohttp.ClientTimeout(total=PATIENCE_S)
        async with (
            aiohttp.ClientSession(timeout=timeout) as http,
            http.post(f"{self.found.gateway}/v1/completions", json=body) as reply,
        ):
            return reply.status, await reply.json()

    def pid(self, model: str) -> int:
        """The engine's process as the run file names it."""
        return next(process.pid for process in self.node.run_dir.read().processes if process.name == model)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    folder = tmp_path_factory.mktemp("ranks")
    config = folder / "vnpu.yaml"
    config.write_text(yaml.safe_dump(configuration(folder / "models")))
    for name, (arch, _) in MODELS.items():
        await made(folder / "models" / name, arch)
    node = start(config, folder / "run")
    store = None
    try:
        store = connect([await etcd_of(node)], environ={})
        chronicle = Chronicle(store)
        following = asyncio.create_task(chronicle.follow())
        yield Running(node, await node.wait_ready(), chronicle)
        following.cancel()
        await asyncio.wait({following})
    finally:
        if store is not None:
            await store.close()
        await node.stop()


async def etcd_of(node: Node) -> str:
    """Its own etcd's URL as soon as it is known, long before the run file: nothing must be missed."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            for line in said(node):
                if "etcd answers at " in line:
                    return line.rpartition(" ")[2]
            await asyncio.sleep(0.05)


def configuration(models: Path) -> dict[str, Any]:
    return {
        "etcd": "embedded",
        "node": "e2e",
        "devices": [{"id": number, "driver": "host", "capacity": CAPACITY} for number in (0, 1)],
        "gateway": {"listen": "127.0.0.1:0", "max_wait": f"{PATIENCE_S:g}s"},
        "admin": {"listen": "127.0.0.1:0"},
        "defaults": {"keep_alive": "1h", "min_residency": "500ms"},
        "models": {
            name: {"path": str(models / name), "kv_cache": "64MiB", "engine_args": dict(ENGINE_ARGS), **keys}
            for name, (_, keys) in MODELS.items()
        },
    }


def holders(picture: Picture, device: str) -> set[Holder]:
    """Who holds bytes of it."""
    return {owner.holder for owner in picture.of(Device)[device].owners if owner.bytes.total}


def engines(picture: Picture, device: str) -> set[str]:
    return {holder.engine for holder in holders(picture, device)}


async def test_ranks_share_the_layers_that_the_file_names(running: Running) -> None:
    """First: the log is of the first start. Each rank says what it shares."""
    log = running.node.run_dir.log(PAIR).read_text()
    assert len(re.findall(rf"\.{SHARED}: {DEPTH} layers over 2 ranks$", log, re.MULTILINE)) == 2
    assert log.count("shared layers are mapped") == 2


async def test_the_two_take_turns_and_answer_as_before(running: Running) -> None:
    chronicle = running.chronicle
    specs = chronicle.picture.of(Spec)
    assert specs[PAIR].devices == BOTH
    assert sum(specs[model].footprint.total for model in MODELS) > parse_size(CAPACITY)
    for model in MODELS:
        running.before[model] = await running.complete(model, "before")
        assert len(set(running.before[model])) > 2
    await chronicle.until(lambda picture: [engines(picture, device) for device in BOTH] == [{SOLO}, set()])
    already = len(chronicle.granted())
    for turn in range(3):
        assert await running.complete(PAIR, f"turn {turn}") == running.before[PAIR]
        await chronicle.until(lambda picture: [engines(picture, device) for device in BOTH] == [{PAIR}, {PAIR}])
        seats = (await chronicle.store.list(f"{ROOT}seats/")).kvs
        assert [kv.mod_revision for kv in seats] == [seats[0].mod_revision] * 2
        assert await running.complete(SOLO, f"turn {turn}") == running.before[SOLO]
        await chronicle.until(lambda picture: [engines(picture, device) for device in BOTH] == [{SOLO}, set()])
    turn_of_both = [(Order.OFFLOAD, SOLO), (Order.RESTORE, PAIR), (Order.OFFLOAD, PAIR), (Order.RESTORE, SOLO)]
    assert chronicle.granted()[already:] == turn_of_both * 3


async def test_a_rank_killed_in_mid_restore_leaves_nothing_half_granted(running: Running) -> None:
    chronicle = running.chronicle
    assert await running.complete(SOLO, "be resident") == running.before[SOLO]
    await chronicle.until(lambda picture: engines(picture, BOTH[1]) == set())
    old = chronicle.picture.of(Spec)[PAIR].holder
    server = psutil.Process(running.pid(PAIR))
    family = [server, *server.children(recursive=True)]
    rank(family, 1).suspend()  # so that the restore cannot end
    asked = asyncio.create_task(running.answer(PAIR, "through the kill"))
    await chronicle.until(lambda picture: any(restores(picture, device, old) for device in BOTH))
    assert not asked.done()
    rank(family, 1).kill()

    _, left = await asyncio.to_thread(psutil.wait_procs, family, PATIENCE_S)
    assert left == []
    await chronicle.until(lambda picture: all(at_rest(picture, device, old) for device in BOTH))
    assert await running.complete(SOLO, "after the kill") == running.before[SOLO]
    status, answer = await asked
    assert status in (200, 503), answer
    assert status == 503 or answer["choices"][0]["token_ids"] == running.before[PAIR]
    await chronicle.until(lambda picture: came_back(picture, old))
    assert await running.complete(PAIR, "after the kill") == running.before[PAIR]


def restores(picture: Picture, device: str, holder: Holder) -> bool:
    """Whether the holder has entered a restore there."""
    opened = picture.of(Device)[device].open
    return opened is not None and (opened.holder, opened.order) == (holder, Order.RESTORE)


def at_rest(picture: Picture, device: str, holder: Holder) -> bool:
    """Whether nothing of the holder is left there, neither pages nor an operation."""
    state, seat = picture.of(Device)[device], picture.of(Seat)[device]
    over = seat.holder != holder or state.closed >= picture.written(Seat, device)
    return over and state.open is None and holder not in holders(picture, device)


async def test_a_killed_rank_ends_its_engine_and_nobody_else(running: Running) -> None:
    chronicle = running.chronicle
    assert await running.complete(PAIR, "be resident") == running.before[PAIR]
    old = chronicle.picture.of(Spec)[PAIR].holder
    server = psutil.Process(running.pid(PAIR))
    family = [server, *server.children(recursive=True)]
    beside = running.pid(SOLO)
    await chronicle.until(lambda picture: [engines(picture, device) for device in BOTH] == [{PAIR}, {PAIR}])
    met = meeting_places(rank(family, 1))
    rank(family, 1).kill()

    assert await running.complete(SOLO, "after the kill") == running.before[SOLO]

    _, left = await asyncio.to_thread(psutil.wait_procs, family, PATIENCE_S)
    assert left == []
    assert len(met) == 2
    assert not [path for path in met if path.exists()]
    await chronicle.until(lambda picture: all(old not in holders(picture, device) for device in BOTH))
    await chronicle.until(lambda picture: came_back(picture, old))
    assert await running.complete(PAIR, "back") == running.before[PAIR]
    assert await running.complete(SOLO, "back") == running.before[SOLO]
    assert running.pid(PAIR) != server.pid
    assert running.pid(SOLO) == beside
    *_, announced = [line for line in said(running.node) if "restarting in" in line]
    assert f" {PAIR} " in announced


def rank(family: list[psutil.Process], number: int) -> psutil.Process:
    """The worker process of that rank, by the title that vLLM gives it."""
    return next(process for process in family if f"VLLM::Worker_TP{number}" in " ".join(process.cmdline()))


def meeting_places(worker: psutil.Process) -> list[Path]:
    """Where vLLM's ranks exchange tensors."""
    paths = {mapping.path.removesuffix(" (deleted)") for mapping in worker.memory_maps() if "cpushm" in mapping.path}
    return [Path(path) for path in paths]


def came_back(picture: Picture, old: Holder) -> bool:
    spec, residency = picture.of(Spec).get(PAIR), picture.of(Residency).get(PAIR)
    if spec is None or residency is None:
        return False
    return old != spec.holder == residency.holder and residency.phase in UP


def said(node: Node) -> list[str]:
    return (node.run_dir.root / "up.log").read_text().splitlines()


async def test_a_gang_is_granted_whole_or_not_at_all(running: Running) -> None:
    """Last: it judges the whole run, start-ups and the kill included (PROTOCOL rules 1 to 3)."""
    gangs = 0
    for changes, closed in replay(running.chronicle.history):
        seats, tokens = put(changes, Seat), put(changes, Token)
        if not seats:
            assert not tokens
            continue
        gang = set(BOTH) if PAIR in {seat.holder.engine for seat in seats.values()} else {"e2e/0"}
        gangs += gang == set(BOTH)
        assert set(seats) == gang
        assert len({(seat.holder, seat.lease, seat.order) for seat in seats.values()}) == 1
        if Order.RECLAIM in {seat.order for seat in seats.values()}:
            assert not tokens
            continue
        assert {device: (token.holder, token.order, token.bytes) for device, token in tokens.items()} == {
            device: (seat.holder, seat.order, seat.bytes) for device, seat in seats.items()
        }
        assert all(closed[device] for device in gang)
    assert gangs >= 2 * 4 + 2


def replay(history: list[Changes]) -> Iterator[tuple[Changes, dict[str, bool]]]:
    """Each revision, with what was known before it: whether the device's last operation was closed. Checks on the way
    that no device ever holds more than it has, and that what is open there was granted there."""
    granted = dict.fromkeys(BOTH, 0)
    closed = dict.fromkeys(BOTH, False)
    done = dict.fromkeys(BOTH, 0)
    for changes in history:
        yield changes, dict(closed)
        for device in put(changes, Seat):
            granted[device] = changes.revision
        for device, state in put(changes, Device).items():
            done[device] = state.closed
            assert state.charged <= state.capacity
            assert state.open is None or state.open.revision == granted[device]
        closed = {device: done[device] >= granted[device] for device in BOTH}
