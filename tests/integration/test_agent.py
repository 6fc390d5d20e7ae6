"""The agent against real etcd, the real daemon and real kills: a light engine instead of vLLM, seconds instead of
minutes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from coordinator.core.model import Order, Phase
from coordinator.embedded import find_binary
from coordinator.store import keys
from coordinator.store.base import Delete
from coordinator.store.epoch import ensure_epoch
from tests.helpers.daemon import DaemonProcess
from tests.helpers.etcd import RealEtcd
from tests.helpers.lab import at
from tests.helpers.light_engine import SHORT_TTL
from tests.helpers.light_lab import LightLab, light_lab

CAPACITY = 64 << 20


@pytest.fixture
async def lab(tmp_path: Path, etcd: RealEtcd) -> AsyncIterator[LightLab]:
    async with light_lab(tmp_path, etcd, CAPACITY) as one:
        yield one


async def test_start_up_goes_through_the_token_and_measures(lab: LightLab):
    async with await lab.start() as engine:
        estimated = await lab.spec(engine)
        assert not estimated.measured
        residency = await lab.residency(engine, lambda r: True)
        assert residency.phase is Phase.STARTING
        granted = await lab.grant(engine, Order.RESTORE)
        residency = await lab.residency(engine, at(granted))
        assert residency.phase is Phase.RESIDENT
        measured = await lab.spec(engine, lambda spec: spec.measured)
        assert measured.digest.startswith("sha256-tree:")
        assert measured.cold_start > 0
        assert 0 < measured.footprint.total <= estimated.footprint.total
        device = await lab.leader.closed(lab.device, granted)
        assert [owner.bytes for owner in device.owners] == [measured.footprint]
        assert (await engine.ask())[0] == 200


async def test_two_engines_take_turns_on_a_device_for_one(lab: LightLab):
    """Equal answers although the other's content was written over the pages in between; nothing is copied out."""
    async with await lab.bring_up(size=40 << 20) as first:
        before = await first.ask("prompt")
        await lab.order(first, Order.OFFLOAD)
        async with await lab.bring_up(size=40 << 20) as second:
            others = await second.ask("prompt")
            assert others[1]["answer"] != before[1]["answer"]
            for _ in range(3):
                offloaded = await lab.order(second, Order.OFFLOAD)
                assert (offloaded.held.total, offloaded.d2h, offloaded.kv_saved) == (0, 0, 4096)
                restored = await lab.order(first, Order.RESTORE)
                assert restored.restored > 4096
                assert await first.ask("prompt") == before
                await lab.order(first, Order.OFFLOAD)
                await lab.order(second, Order.RESTORE)
                assert await second.ask("prompt") == others


async def test_a_request_in_flight_survives_a_switch(lab: LightLab):
    async with await lab.bring_up(hold=["answer"]) as engine:
        before = asyncio.create_task(engine.ask("flight", steps=3))
        await engine.at("answer")
        engine.go_on()
        whole = await before
        asking = asyncio.create_task(engine.ask("flight", steps=3))
        await engine.at("answer")
        await lab.order(engine, Order.OFFLOAD)
        engine.go_on()
        await lab.load(engine, lambda load: (load.running, load.waiting) == (0, 1))
        assert not asking.done()
        await lab.order(engine, Order.RESTORE)
        assert await asking == whole


async def test_a_request_wakes_the_load_key_and_waits_at_the_gate(lab: LightLab):
    async with await lab.bring_up() as engine:
        await lab.order(engine, Order.OFFLOAD)
        asking = [asyncio.create_task(engine.ask("x")) for _ in range(20)]
        await lab.load(engine, lambda load: load.waiting == 20)
        late = await engine.ask("x", headers={"X-VNPU-Deadline": "0"})
        assert (late[0], late[1]["error"]["code"]) == (503, "wait_timeout")
        await lab.order(engine, Order.RESTORE)
        assert [(await one)[0] for one in asking] == [200] * 20
        await lab.load(engine, lambda load: (load.running, load.waiting) == (0, 0))


async def test_the_load_key_tells_how_long_the_newest_answer_took(lab: LightLab):
    async with await lab.bring_up() as engine:
        assert (await lab.load(engine, lambda load: True)).ttft == 0.0
        status, _ = await engine.ask()
        assert status == 200
        assert (await lab.load(engine, lambda load: load.ttft > 0)).waiting == 0


async def test_denied_pages_are_answered_offloaded_with_the_reason(lab: LightLab):
    async with await lab.bring_up() as engine:
        before = await engine.ask()
        await lab.order(engine, Order.OFFLOAD)
        granted = await lab.grant(engine, Order.RESTORE, size=1)
        residency = await lab.residency(engine, at(granted))
        assert residency.phase is Phase.OFFLOADED
        assert "no_space" in residency.error
        device = await lab.leader.closed(lab.device, granted)
        assert device.owners == ()
        await lab.order(engine, Order.RESTORE)
        assert await engine.ask() == before


async def test_requests_run_while_the_restore_goes_on_and_the_next_order_waits_for_its_end(lab: LightLab):
    async with await lab.bring_up(hold=["settle"]) as engine:
        before = await engine.ask()
        await lab.order(engine, Order.OFFLOAD)
        granted = await lab.grant(engine, Order.RESTORE)
        await engine.at("settle")
        assert await engine.ask() == before
        device = await lab.leader.device(lab.device)
        assert device is not None
        assert device.closed < granted.revision
        engine.go_on()
        assert (await lab.residency(engine, at(granted))).phase is Phase.RESIDENT
        await lab.leader.closed(lab.device, granted)
        assert (await lab.order(engine, Order.OFFLOAD)).held.total == 0


@pytest.mark.parametrize("when", ["resident", "drain", "offload", "offloaded", "restore", "settle", "seal"])
async def test_kill_9_frees_the_device_whatever_was_going_on(lab: LightLab, when: str):
    async with await lab.start(hold=[when]) as engine:
        await lab.grant(engine, Order.RESTORE)
        if when == "seal":
            await engine.at("seal")
        else:
            await lab.residency(engine, lambda r: r.phase is Phase.RESIDENT)
        if when in ("drain", "offload"):
            await lab.grant(engine, Order.OFFLOAD)
            await engine.at(when)
        if when in ("offloaded", "restore", "settle"):
            await lab.order(engine, Order.OFFLOAD)
        if when in ("restore", "settle"):
            await lab.grant(engine, Order.RESTORE)
            await engine.at(when)
        engine.kill()
        await lab.gone(engine)
        await lab.leader.until(lab.device, lambda device: not device.owners and device.open is None)
        await lab.leader.closed(lab.device)
    async with await lab.bring_up() as other:
        assert (await other.ask())[0] == 200


async def test_stopped_past_its_lease_with_free_memory_its_first_operation_is_refused(lab: LightLab):
    async with await lab.bring_up(hold=["enter"], ttl=SHORT_TTL) as engine:
        before = await lab.registered(engine)
        answer = await engine.ask()
        granted = await lab.grant(engine, Order.OFFLOAD)
        await engine.at("enter")
        engine.stop()
        await lab.gone(engine)
        closed = await lab.leader.closed(lab.device, granted)
        assert closed.owners
        engine.go_on()
        engine.resume()
        residency = await lab.residency(engine, lambda r: r.phase is Phase.RESIDENT and not r.busy)
        assert residency.held.total > 0
        again = await lab.registered(engine)
        assert again.lease != before.lease
        assert await engine.ask() == answer
        granted = await lab.grant(engine, Order.OFFLOAD)
        await engine.at("enter")
        engine.go_on()
        assert (await lab.residency(engine, at(granted))).phase is Phase.OFFLOADED


async def test_stopped_past_its_lease_while_it_drains_what_it_has_entered_runs_on(lab: LightLab):
    """PROTOCOL rule 7: the daemon lets nobody else in, and the engine ends what it has begun."""
    async with await lab.bring_up(hold=["drain"], ttl=SHORT_TTL) as engine:
        before = await lab.registered(engine)
        granted = await lab.grant(engine, Order.OFFLOAD)
        await engine.at("drain")
        await lab.leader.until(lab.device, lambda device: device.open is not None)
        engine.stop()
        await lab.gone(engine)
        device = await lab.leader.device(lab.device)
        assert device is not None
        assert device.open is not None
        assert device.closed < granted.revision
        engine.go_on()
        engine.resume()
        residency = await lab.residency(engine, lambda r: r.phase is Phase.OFFLOADED and not r.busy)
        assert (residency.held.total, (await lab.leader.closed(lab.device, granted)).owners) == (0, ())
        assert (await lab.registered(engine)).lease != before.lease


async def test_stopped_past_its_lease_under_pressure_it_is_reclaimed(lab: LightLab):
    async with await lab.bring_up(ttl=SHORT_TTL) as engine:
        registered = await lab.registered(engine)
        engine.stop()
        await lab.gone(engine)
        device = await lab.leader.device(lab.device)
        assert device is not None
        assert device.owners
        reclaimed = await lab.leader.reclaim(registered)
        device = await lab.leader.closed(lab.device, reclaimed)
        assert device.owners == ()
        assert await engine.ended() == -9
    async with await lab.bring_up() as other:
        assert (await other.ask())[0] == 200


async def test_an_engine_that_hangs_loses_its_lease_until_it_answers(lab: LightLab):
    async with await lab.bring_up(hold=["ping"], ttl=SHORT_TTL) as engine:
        await engine.at("ping")
        await lab.gone(engine)
        engine.go_on()
        assert (await lab.residency(engine, lambda r: True)).phase is Phase.RESIDENT
        assert (await lab.order(engine, Order.OFFLOAD)).phase is Phase.OFFLOADED


async def test_an_operation_outlives_its_lease_and_registers_busy(lab: LightLab):
    async with await lab.bring_up(hold=["offload"]) as engine:
        registered = await lab.registered(engine)
        granted = await lab.grant(engine, Order.OFFLOAD)
        await engine.at("offload")
        await lab.store.revoke_lease(registered.lease)
        busy = await lab.residency(engine, lambda r: r.busy)
        assert busy.phase is Phase.DRAINING
        await lab.leader.until(lab.device, lambda device: device.open is not None)
        engine.go_on()
        residency = await lab.residency(engine, at(granted))
        assert (residency.phase, residency.busy) == (Phase.OFFLOADED, False)
        device = await lab.leader.closed(lab.device, granted)
        assert device.owners == ()
        assert (await lab.order(engine, Order.RESTORE)).phase is Phase.RESIDENT


async def test_a_daemon_that_is_killed_mid_operation_comes_back_and_it_goes_on(lab: LightLab):
    async with await lab.bring_up(hold=["offload"]) as engine:
        before = await engine.ask()
        granted = await lab.grant(engine, Order.OFFLOAD)
        await engine.at("offload")
        lab.daemon.kill()
        await lab.daemon.ended()
        engine.go_on()
        lab.daemon.start()
        await lab.daemon.ready(lab.store)
        assert (await lab.residency(engine, at(granted))).phase is Phase.OFFLOADED
        await lab.order(engine, Order.RESTORE)
        assert await engine.ask() == before


async def test_a_new_epoch_makes_it_register_again_and_no_page_moves(lab: LightLab):
    async with await lab.bring_up() as engine:
        before = await lab.registered(engine)
        owners = (await lab.leader.closed(lab.device)).owners
        await lab.store.txn([], [Delete(keys.EPOCH), Delete(keys.seat(lab.device)), Delete(keys.token(lab.device))])
        await ensure_epoch(lab.store)
        await lab.registered(engine, lambda kv: kv.lease != before.lease)
        residency = await lab.residency(engine, lambda r: True)
        assert residency.phase is Phase.RESIDENT
        epoch = (await ensure_epoch(lab.store)).id
        device = await lab.leader.until(lab.device, lambda state: state.epoch == epoch)
        assert device.owners == owners
        assert (await lab.order(engine, Order.OFFLOAD)).phase is Phase.OFFLOADED


async def test_an_id_in_use_is_refused_with_a_remedy(lab: LightLab):
    async with await lab.bring_up("same") as engine, await lab.start("same", join=3.0) as other:
        assert await other.ended() == 1
        assert "VNPU_ENGINE_ID" in other.log.read_text()
        assert (await engine.ask())[0] == 200


async def test_a_model_larger_than_its_device_is_refused_at_once(lab: LightLab):
    async with await lab.start(size=80 << 20) as engine:
        assert await engine.ended() == 1
        assert "raise the device's capacity" in engine.log.read_text()


async def test_a_chunk_left_out_of_a_restore_is_caught_and_ends_the_engine(lab: LightLab):
    async with await lab.bring_up(size=40 << 20, fault="skip") as engine:
        await lab.order(engine, Order.OFFLOAD)
        async with await lab.bring_up(size=40 << 20) as other:
            await lab.order(other, Order.OFFLOAD)
            asking = asyncio.create_task(engine.ask())
            await lab.load(engine, lambda load: load.waiting == 1)
            await lab.grant(engine, Order.RESTORE)
            status, body = await asking
            assert (status, body["error"]["code"]) == (503, "engine_failed")
            assert await engine.ended() == 1
            device = await lab.leader.closed(lab.device)
            assert device.owners == ()


async def test_a_stop_gives_the_lease_back(lab: LightLab):
    async with await lab.bring_up(ttl=60) as engine:
        engine.terminate()
        await engine.ended()
        assert await lab.store.get(keys.spec(engine.engine)) is None


async def test_etcd_away_residents_serve_and_an_entered_operation_ends(tmp_path: Path):
    etcd = RealEtcd(tmp_path, binary=find_binary({}))
    await etcd.start()
    store = etcd.client()
    try:
        with DaemonProcess(tmp_path, etcd.url, devices=[f"0:host:{CAPACITY}"]) as daemon:
            await daemon.ready(store)
            lab = LightLab(tmp_path, etcd, daemon, store)
            await lab.leader.elect()
            async with await lab.bring_up(hold=["offload"]) as engine:
                granted = await lab.grant(engine, Order.OFFLOAD)
                await engine.at("offload")
                await etcd.kill()
                engine.go_on()
                await etcd.start()
                assert (await lab.residency(engine, at(granted))).phase is Phase.OFFLOADED
                await lab.order(engine, Order.RESTORE)
                before = await engine.ask()
                await etcd.kill()
                assert await engine.ask() == before
                await etcd.start()
                granted = await lab.grant(engine, Order.OFFLOAD)
                await engine.at("offload")
                engine.go_on()
                assert (await lab.residency(engine, at(granted))).phase is Phase.OFFLOADED
    finally:
        await store.close()
        await etcd.stop()
