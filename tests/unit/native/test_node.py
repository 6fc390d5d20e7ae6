"""The whole node in one process, with etcd in memory and a disk that can be held up or fail: what is said, and when."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from coordinator.core.model import Fence, Order, Phase, Residency
from coordinator.core.model import Holder as ModelHolder
from coordinator.store import keys
from coordinator.store.codec import encode
from native import protocol
from native.daemon import calls, keeper, publisher
from native.daemon.latency import WakeUps
from native.fences import Holder
from native.link import ANSWER_MARGIN
from native.protocol import (
    Answer,
    Code,
    Done,
    Kind,
    Map,
    Mapped,
    Opened,
    Refused,
)
from tests.helpers.leader import Granted
from tests.helpers.node_in_place import CHUNK, MIB, PATIENCE_S, place


def offloaded(holder: ModelHolder, fence: Granted) -> bytes:
    return encode(Residency(holder=holder, phase=Phase.OFFLOADED, fence=Fence(fence.epoch, fence.revision)))


async def test_an_answer_stands_in_the_revision_that_says_closed(tmp_path: Path) -> None:
    async with place(tmp_path) as at:
        fence = await at.leader.grant(at.spec, Order.RESTORE, 8 * MIB)
        await at.enter(fence)
        answer = offloaded(at.spec.holder, fence)
        assert await at.leave(fence, Answer(answer, 0)) == Done()
        await at.leader.closed(at.device, fence)
        said = await at.leader.store.get(keys.residency("a"))
        closed = await at.leader.store.get(keys.device(at.device))
        assert said is not None
        assert closed is not None
        assert (said.value, said.lease, said.mod_revision) == (answer, at.spec.lease, closed.mod_revision)


@pytest.mark.parametrize("wrong", ["not json", "another's", "moved on"])
async def test_an_answer_that_is_not_the_callers_is_not_put_and_the_operation_ends(tmp_path: Path, wrong: str) -> None:
    async with place(tmp_path) as at:
        fence = await at.leader.grant(at.spec, Order.RESTORE, 8 * MIB)
        await at.enter(fence)
        said = offloaded(ModelHolder("b", "n") if wrong == "another's" else at.spec.holder, fence)
        answer = Answer(b"{" if wrong == "not json" else said, 3 if wrong == "moved on" else 0)
        assert await at.leave(fence, answer) == Done()
        await at.leader.closed(at.device, fence)
        assert await at.leader.store.get(keys.residency("a")) is None


async def test_nothing_is_answered_before_it_is_on_disk(tmp_path: Path) -> None:
    async with place(tmp_path) as at:
        fence = await at.leader.grant(at.spec, Order.RESTORE, 8 * MIB)
        for call in (lambda: at.enter(fence), lambda: at.map(1), lambda: at.leave(fence)):
            at.disk.free.clear()
            answer = asyncio.create_task(call())
            await asyncio.sleep(0.1)
            assert not answer.done()
            at.disk.free.set()
            assert not isinstance(await answer, Refused)
        assert at.closed_on_disk == fence.revision


async def test_nothing_is_published_before_it_is_on_disk(tmp_path: Path) -> None:
    async with place(tmp_path) as at:
        fence = await at.leader.grant(at.spec, Order.RESTORE, 8 * MIB)
        await at.enter(fence)
        at.disk.free.clear()
        leaving = asyncio.create_task(at.leave(fence))
        await asyncio.sleep(1.0)
        state = await at.leader.device(at.device)
        assert state is not None
        assert state.closed < fence.revision
        at.disk.free.set()
        assert await leaving == Done()
        await at.leader.closed(at.device, fence)


async def test_leave_does_not_wait_for_etcd(tmp_path: Path) -> None:
    async with place(tmp_path) as at:
        fence = await at.leader.grant(at.spec, Order.RESTORE, 8 * MIB)
        await at.enter(fence)
        at.leader.store.server.stop()  # type: ignore[attr-defined]
        assert await at.leave(fence) == Done()
        at.leader.store.server.start()  # type: ignore[attr-defined]
        await at.leader.closed(at.device, fence)


async def test_what_cannot_be_persisted_is_refused_and_not_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper, "RETRY_PAUSE", 0.01)
    async with place(tmp_path) as at:

        def full(yes: bool) -> None:
            """Patience only where the disk takes it: the machine may be busy."""
            at.disk.full = yes
            monkeypatch.setattr(calls, "PERSIST_TIMEOUT", 0.2 if yes else 60.0)

        fence = await at.leader.grant(at.spec, Order.RESTORE, 8 * MIB)
        full(True)
        refused = await at.enter(fence)
        assert isinstance(refused, Refused)
        assert refused.code is Code.FAILED
        assert at.node.devices["0"].fences.record.open is None
        full(False)
        assert isinstance(await at.enter(fence), Opened)
        full(True)
        refused = await at.map(1)
        assert isinstance(refused, Refused)
        assert at.node.devices["0"].pool.charged == 0
        full(False)
        assert isinstance(await at.map(2), Mapped)
        full(True)
        refused = await at.leave(fence)
        assert isinstance(refused, Refused)
        full(False)
        assert await at.leave(fence) == Done()
        assert at.closed_on_disk == fence.revision
        assert (await at.leader.closed(at.device, fence)).charged == CHUNK


async def test_an_answer_that_is_given_up_leaves_no_page_behind(tmp_path: Path) -> None:
    """The peer hangs up while the disk is written."""
    async with place(tmp_path) as at:
        fence = await at.leader.grant(at.spec, Order.RESTORE, 8 * MIB)
        await at.enter(fence)
        at.disk.free.clear()
        mapping = asyncio.create_task(at.map(1))
        await asyncio.sleep(0.1)
        mapping.cancel()
        await asyncio.wait((mapping,))
        at.disk.free.set()
        await at.leave(fence)
        assert (await at.leader.closed(at.device, fence)).charged == 0


async def test_a_switch_costs_one_write_of_the_device_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Entering and mapping are not worth one while nobody may act on them (PROTOCOL, cost)."""
    monkeypatch.setattr(publisher, "LAZY", PATIENCE_S)
    async with place(tmp_path) as at:
        fence = await at.leader.grant(at.spec, Order.RESTORE, 8 * MIB)
        store = at.leader.store
        before = await store.get(keys.device(at.device))
        await at.enter(fence)
        for ticket in range(1, 4):
            await at.map(ticket)
        await at.leave(fence)
        await at.leader.closed(at.device, fence)
        after = await store.get(keys.device(at.device))
        assert before is not None
        assert after is not None
        assert after.mod_revision == fence.revision + 1


async def test_a_long_operation_shows(tmp_path: Path) -> None:
    async with place(tmp_path) as at:
        fence = await at.leader.grant(at.spec, Order.RESTORE, 8 * MIB)
        await at.enter(fence)
        state = await at.leader.until(at.device, lambda state: state.open is not None)
        assert state.open is not None
        assert (state.open.holder, state.open.order) == (at.spec.holder, Order.RESTORE)
        await at.leave(fence)


async def test_at_its_limit_an_operation_of_a_lost_store_is_killed_though_nothing_else_happens(tmp_path: Path) -> None:
    """PROTOCOL rule 13; time alone wakes the daemon, which by then knows of the loss (its watch doubts after 3 s)."""
    async with place(tmp_path) as at:
        fence = await at.leader.grant(at.spec, Order.RESTORE, 8 * MIB, limit_s=6.0)
        await at.enter(fence)
        await at.map(1)
        at.leader.store.server.lose_data()  # type: ignore[attr-defined]
        assert await asyncio.to_thread(at.process.wait) == -9
        state = await at.leader.until(at.device, lambda state: state.epoch != fence.epoch)
        assert (state.owners, state.open, state.closed) == ((), None, 0)


async def test_kv_is_never_handed_out_unwiped(tmp_path: Path) -> None:
    async with place(tmp_path) as at:
        await at.enter(await at.leader.grant(at.spec, Order.RESTORE, 8 * MIB))
        reply = (await at.worker.handle(Map(at.device, Kind.KV, 1, 1, 5.0, overwritten=True))).reply
        assert isinstance(reply, Refused)
        assert reply.code is Code.BAD_REQUEST


async def test_what_is_counted_goes_along_with_a_change_and_makes_none(tmp_path: Path) -> None:
    async with place(tmp_path) as at:
        fence = await at.leader.grant(at.spec, Order.RESTORE, 8 * MIB)
        await at.enter(fence)
        await at.map(1)
        await at.leave(fence)
        state = await at.leader.until("n/0", lambda state: state.closed == fence.revision)
        work = {one.name: one for one in state.work}
        assert (work["map"].count, work["map"].bytes, work["populate"].bytes) == (1, CHUNK, 8 * MIB)
        before = at.node._draw("0", at.node.devices["0"])
        at.node.devices["0"].counters.took("wipe", 1.0, CHUNK)
        assert at.node._draw("0", at.node.devices["0"]) == before


async def test_each_step_of_an_operation_asks_and_nothing_else_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(WakeUps, "hasten", lambda self: asked.append("now"))
    async with place(tmp_path) as at:
        at.node.settle()
        asked.clear()
        fence = await at.leader.grant(at.spec, Order.RESTORE, 8 * MIB)
        await at.enter(fence)
        assert 1 <= len(asked) <= 2, "granted, entered: the daemon may hear of the grant by the question to enter"
        asked.clear()
        await at.map(1)
        at.node.settle()
        assert asked == []
        await at.leave(fence)
        assert asked == ["now"]


async def test_a_grant_alone_is_neither_kept_nor_shown_anew(tmp_path: Path) -> None:
    async with place(tmp_path) as at:
        await at.agent.until(lambda: at.node.devices["0"].fences.agreed, PATIENCE_S)  # every chunk has come
        await at.agent.settled()
        marked = at.node.keeper._marked
        fence = await at.leader.grant(at.spec, Order.RESTORE, 8 * MIB)
        await at.agent.until(lambda: at.node.devices["0"].fences.stand[0] == fence.revision, PATIENCE_S)
        assert at.node.keeper._marked == marked
        await at.leader.store.revoke_lease(at.spec.lease)
        await at.agent.until(lambda: at.node.devices["0"].fences.record.closed == fence.revision, PATIENCE_S)
        await at.agent.durable()
        assert at.closed_on_disk == fence.revision, "what follows from it is"


async def test_facts_are_told(tmp_path: Path) -> None:
    async with place(tmp_path) as at:
        fence = await at.leader.grant(at.spec, Order.RESTORE, 8 * MIB)
        await at.enter(fence)
        await at.map(1)
        reply = (await at.worker.handle(protocol.Stats())).reply
        assert isinstance(reply, protocol.Facts)
        facts = json.loads(reply.json)
        pool = {"free": 8 * MIB - CHUNK, "blank": 8 * MIB - CHUNK, "charged": CHUNK, "missing": 0, "foreign": 0}
        assert facts["devices"]["0"]["pool"] == pool
        assert [one["pid"] for one in facts["processes"]] == [at.process.pid]
        assert {name: one["count"] for name, one in facts["calls"].items()} == {"Hello": 2, "Enter": 1, "Map": 1}
        assert 0 < facts["calls"]["Map"]["longest"] <= facts["calls"]["Map"]["seconds"]
        populated = facts["devices"]["0"]["steps"]["populate"]
        assert (populated["count"], populated["bytes"]) == (4, 8 * MIB)


async def test_drift_that_stands_is_taken_off_the_capacity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At its first sight it is an operation under way; when it passes, the capacity is what was configured."""
    async with place(tmp_path) as at:
        drift = CHUNK
        monkeypatch.setattr(at.node.devices["0"], "drift", lambda: drift)
        at.node.measure.sample_drift()
        assert at.node.measure.drift == {}
        at.node.measure.sample_drift()
        at.node.settle()
        await at.leader.until(at.device, lambda state: (state.capacity, state.drift) == (8 * MIB - CHUNK, CHUNK))
        drift = 0
        at.node.measure.sample_drift()
        at.node.settle()
        await at.leader.until(at.device, lambda state: (state.capacity, state.drift) == (8 * MIB, 0))


async def test_a_worker_is_not_told_of_an_operation_that_ended_while_the_disk_was_slow(tmp_path: Path) -> None:
    async with place(tmp_path) as at:
        fence = await at.leader.grant(at.spec, Order.RESTORE, 8 * MIB)
        await at.enter(fence)
        at.disk.free.clear()
        at.node.devices["0"].fences.observe(at.node.view.of("0"))
        at.node.generation += 1  # something to write
        at.node.settle()
        waiting = asyncio.create_task(at.worker.handle(protocol.AwaitOpen(at.device, 0.5)))
        await asyncio.sleep(0.1)
        assert at.node.devices["0"].fences.leave(Holder("a", at.spec.holder.nonce), fence.epoch, fence.revision) is None
        at.disk.free.set()
        refused = (await waiting).reply
        assert isinstance(refused, Refused)
        assert refused.code is Code.TIMEOUT


def test_the_journals_time_limit_lies_under_the_clients() -> None:
    assert calls.PERSIST_TIMEOUT < ANSWER_MARGIN
