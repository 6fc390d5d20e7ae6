"""Engines of one content in the same pages of a device: real memory hands and agents, the real daemon, real kills."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from coordinator.core.model import Order, Phase, Residency
from engine_patch.host_bus import RESERVED, WEIGHTS_AT
from native.link import read_stats
from tests.helpers.etcd import RealEtcd
from tests.helpers.lab import at
from tests.helpers.light_engine import LightEngine
from tests.helpers.light_lab import LightLab, light_lab

MIB = 1 << 20
WEIGHTS = 22 * MIB
CAPACITY = 36 * MIB
"""One and a half of an engine with 22 MiB of weights and 2 MiB of KV."""


@pytest.fixture
async def lab(tmp_path: Path, etcd: RealEtcd) -> AsyncIterator[LightLab]:
    async with light_lab(tmp_path, etcd, CAPACITY) as one:
        yield one


async def asleep(lab: LightLab, content: str = "same") -> LightEngine:
    engine = await lab.bring_up(size=WEIGHTS, content=content)
    await engine.ask("prompt")
    await lab.order(engine, Order.OFFLOAD)
    return engine


@asynccontextmanager
async def two(lab: LightLab) -> AsyncIterator[tuple[LightEngine, LightEngine]]:
    """Asleep; each is known to leave its weights alone: it has answered, and left, while the other was there."""
    async with await asleep(lab) as first, await asleep(lab) as second:
        await lab.order(first, Order.RESTORE)
        await first.ask("prompt")
        await lab.order(first, Order.OFFLOAD)
        yield first, second


async def join(lab: LightLab, engine: LightEngine) -> Residency:
    """Granted its KV only, as the scheduler does where its weights lie on the device."""
    spec = await lab.spec(engine)
    granted = await lab.grant(engine, Order.RESTORE, spec.footprint.kv)
    return await lab.residency(engine, at(granted))


def access(engine: LightEngine) -> set[str]:
    """How the engine has its weights' pages mapped: `rw-s`, `r--s`."""
    lines = [line.split() for line in Path(f"/proc/{engine.pid}/maps").read_text().splitlines()]
    mapped = [(int(line[0].split("-")[0], 16), line[1]) for line in lines]
    return {rights for at, rights in mapped if WEIGHTS_AT <= at < WEIGHTS_AT + RESERVED and rights != "---p"}


async def charged(lab: LightLab) -> dict[str, tuple[int, int]]:
    """MiB of weights and of KV by engine."""
    state = await lab.leader.closed(lab.device)
    owners = {owner.holder.engine: owner.bytes for owner in state.owners}
    return {engine: (held.weights // MIB, held.kv // MIB) for engine, held in owners.items() if held.total}


async def killed(lab: LightLab, engine: LightEngine) -> None:
    """By kill -9; until nothing on the device is its own."""
    engine.kill()
    await engine.ended()
    await lab.leader.until(
        lab.device, lambda state: all(owner.holder.engine != engine.engine for owner in state.owners)
    )


async def test_two_engines_of_one_content_where_one_and_a_half_fit(lab: LightLab) -> None:
    async with two(lab) as (first, second):
        assert (await lab.spec(first)).digest == (await lab.spec(second)).digest
        own = await lab.order(first, Order.RESTORE)
        before = await first.ask("prompt")
        joined = await join(lab, second)
        assert joined.phase is Phase.RESIDENT
        assert await second.ask("prompt") == before
        assert await first.ask("prompt") == before
        assert await charged(lab) == {first.engine: (WEIGHTS // MIB, 2), second.engine: (0, 2)}
        assert (access(first), access(second)) == ({"r--s"}, {"r--s"})
        assert not own.joined
        assert joined.restored == 4096  # its saved KV
        assert joined.held.weights == 0

        for _ in range(2):  # the owner leaves and joins who has inherited
            await lab.order(first, Order.OFFLOAD)
            assert await second.ask("prompt") == before
            assert await charged(lab) == {second.engine: (WEIGHTS // MIB, 2)}
            assert (await join(lab, first)).phase is Phase.RESIDENT
            assert await first.ask("prompt") == before
            first, second = second, first
        await lab.order(first, Order.OFFLOAD)
        assert (await lab.order(second, Order.OFFLOAD)).held.total == 0
        assert await charged(lab) == {}
        assert not (await lab.order(second, Order.RESTORE)).joined
        assert await second.ask("prompt") == before


async def test_kill_9_of_the_owner_and_then_others_need_the_room(lab: LightLab) -> None:
    async with two(lab) as (first, second), await asleep(lab, "other") as other:
        await lab.order(first, Order.RESTORE)
        before = await first.ask("prompt")
        await join(lab, second)
        await killed(lab, first)
        assert await charged(lab) == {second.engine: (WEIGHTS // MIB, 2)}
        assert await second.ask("prompt") == before
        await lab.order(second, Order.OFFLOAD)
        await lab.order(other, Order.RESTORE)  # overwrites every page
        others = await other.ask("prompt")
        assert others[1] != before[1]
        await lab.order(other, Order.OFFLOAD)
        await lab.order(second, Order.RESTORE)
        assert await second.ask("prompt") == before


async def test_a_share_that_vanished_meanwhile_is_a_denial(lab: LightLab) -> None:
    async with two(lab) as (first, second):
        await lab.order(first, Order.RESTORE)
        await lab.order(first, Order.OFFLOAD)
        denied = await join(lab, second)  # granted while the pages lay there
        assert (denied.phase, denied.held.total) == (Phase.OFFLOADED, 0)
        assert await charged(lab) == {}
        await lab.order(second, Order.RESTORE)
        assert (await second.ask("prompt"))[0] == 200


async def switched(lab: LightLab, engine: LightEngine) -> set[str]:
    """Off the device and back; the steps that this took."""
    left = await lab.order(engine, Order.OFFLOAD)
    back = await lab.order(engine, Order.RESTORE)
    return {step.name for step in (*left.steps, *back.steps)}


async def test_an_engine_that_was_never_asked_offers_nothing(lab: LightLab) -> None:
    """Nobody knows yet whether it leaves its weights alone."""
    async with await asleep(lab), await lab.bring_up(size=WEIGHTS, content="same") as engine:
        assert "still" not in await switched(lab, engine)
        assert (await lab.leader.closed(lab.device)).shared == ()
        assert access(engine) == {"rw-s"}
        await engine.ask("prompt")
        assert "still" in await switched(lab, engine)
        digest = (await lab.spec(engine)).digest
        assert [shared.digest for shared in (await lab.leader.closed(lab.device)).shared] == [digest]
        assert access(engine) == {"r--s"}
        await engine.ask("prompt")
        assert "still" not in await switched(lab, engine)  # it is known by now


async def test_an_engine_that_is_alone_pays_for_nothing(lab: LightLab) -> None:
    async with await asleep(lab, "another") as other, await lab.bring_up(size=WEIGHTS) as engine:
        for _ in range(2):
            assert (await engine.ask("prompt"))[0] == 200
            assert "still" not in await switched(lab, engine)
        assert (await lab.leader.closed(lab.device)).shared == ()
        assert access(engine) == {"rw-s"}
        assert access(other) == set()


async def test_who_else_has_its_content_is_asked_while_it_comes_and_not_while_it_leaves(lab: LightLab) -> None:
    def asked() -> int:
        calls = json.loads(read_stats(str(lab.daemon.socket)))["calls"]
        return int(calls["ShareWanted"]["count"]) if "ShareWanted" in calls else 0

    async with await lab.bring_up(size=WEIGHTS) as engine:
        await engine.ask("prompt")
        for order, times in ((Order.OFFLOAD, 1), (Order.RESTORE, 2), (Order.OFFLOAD, 2), (Order.RESTORE, 3)):
            await lab.order(engine, order)
            assert asked() == times
            if order is Order.RESTORE:
                await engine.ask("prompt")


async def test_engines_that_were_told_not_to_share(lab: LightLab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VNPU_SHARE_WEIGHTS", "0")
    async with two(lab) as (first, _):
        back = await lab.order(first, Order.RESTORE)
        assert not back.joined
        assert access(first) == {"rw-s"}
        assert (await lab.leader.closed(lab.device)).shared == ()


async def test_an_engine_that_writes_to_its_weights_offers_nothing(lab: LightLab) -> None:
    async with await asleep(lab), await lab.bring_up(size=WEIGHTS, content="same", fault="write") as engine:
        for _ in range(2):
            assert (await engine.ask("prompt"))[0] == 200
            await switched(lab, engine)
        assert (await lab.leader.closed(lab.device)).shared == ()
        assert (await engine.ask("prompt"))[0] == 200
        assert engine.log.read_text().count("their pages are not shared") == 1


# ---- from the start


@pytest.fixture
async def wide(tmp_path: Path, etcd: RealEtcd) -> AsyncIterator[LightLab]:
    """For a whole engine beside another: what it needs while it starts."""
    async with light_lab(tmp_path, etcd, 3 * WEIGHTS) as one:
        yield one


async def start(lab: LightLab, beside: str, **more: object) -> LightEngine:
    return await lab.bring_up(size=WEIGHTS, content="same", claims="same", beside=beside, **more)


def fetched(engine: LightEngine) -> tuple[int, int]:
    """Blocks that came, of all."""
    (line,) = [line for line in engine.log.read_text().splitlines() if "fetched" in line and "blocks" in line]
    came, _, of = line.partition("fetched ")[2].partition(" of ")
    return int(came), int(of.split()[0])


async def test_an_engine_that_starts_lies_in_the_pages_of_one_that_runs(wide: LightLab) -> None:
    async with await start(wide, "first") as first:
        before = await first.ask("prompt")
        async with await start(wide, "next") as second:
            assert fetched(second) == (1, WEIGHTS // MIB + 1), "what lies in no device page"
            specs = await wide.spec(first), await wide.spec(second)
            assert specs[0].digest == specs[1].digest
            assert specs[0].footprint == specs[1].footprint, "what it needs alone"
            assert await charged(wide) == {first.engine: (WEIGHTS // MIB, 2), second.engine: (0, 2)}
            assert (access(first), access(second)) == ({"r--s"}, {"r--s"})
            assert await second.ask("prompt") == before
            assert await first.ask("prompt") == before
            await wide.order(first, Order.OFFLOAD)
            assert await charged(wide) == {second.engine: (WEIGHTS // MIB, 2)}
            assert await second.ask("prompt") == before
            async with await start(wide, "next") as third:  # of one that has inherited them
                assert fetched(third)[0] == 1
                await killed(wide, second)
                assert await charged(wide) == {third.engine: (WEIGHTS // MIB, 2)}
                assert await third.ask("prompt") == before
                await wide.order(third, Order.OFFLOAD)
                assert await charged(wide) == {}
                await wide.order(third, Order.RESTORE)
                assert await third.ask("prompt") == before


@pytest.mark.parametrize("why", ["never asked", "asleep", "writes", "told not to"])
async def test_an_engine_that_starts_copies_where_it_must(
    wide: LightLab, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if why == "told not to":
        monkeypatch.setenv("VNPU_SHARE_WEIGHTS", "0")
    async with await start(wide, "first", fault="write" if why == "writes" else "") as first:
        if why != "never asked":
            await first.ask("prompt")
        if why == "asleep":
            await wide.order(first, Order.OFFLOAD)
        async with await start(wide, "next") as second:
            assert fetched(second) == (WEIGHTS // MIB + 1,) * 2
            assert access(second) == {"rw-s"}
            assert (await wide.leader.closed(wide.device)).shared == ()
            assert (await second.ask("prompt"))[0] == 200
