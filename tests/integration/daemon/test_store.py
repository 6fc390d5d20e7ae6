"""PROTOCOL rules 13 and 14: etcd goes away, loses its data, comes back with an old snapshot."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

from coordinator.core.model import Order
from coordinator.store import keys
from coordinator.store.base import Delete, Put
from coordinator.store.epoch import ensure_epoch
from tests.helpers.daemon import DaemonProcess
from tests.helpers.etcd import RealEtcd
from tests.helpers.eventually import PATIENCE_S
from tests.helpers.leader import Leader
from tests.helpers.puppet import PuppetRefused
from tests.helpers.puppet_engine import CHUNK, puppet_engine

SIGKILLED = -9
DATA = Path("own/etcd/member")


async def lose_data(etcd: RealEtcd, tmp_path: Path) -> None:
    await etcd.stop()
    shutil.rmtree(tmp_path / DATA)
    await etcd.start()


async def test_an_entered_operation_ends_while_etcd_is_away(
    own_etcd: RealEtcd, own_daemon: DaemonProcess, leader: Leader
) -> None:
    async with puppet_engine(own_daemon, leader) as a:
        fence = await a.begin()
        own_etcd.pause()
        await a.worker.map(a.device, 4, 1)
        await a.leave(fence)
        with pytest.raises(PuppetRefused, match="not_open"):
            await a.worker.map(a.device, 1, 1)
        own_etcd.resume()
        assert (await leader.closed(a.device, fence)).charged == 4 * CHUNK


async def test_a_daemon_started_without_etcd_lets_its_engines_finish(
    own_etcd: RealEtcd, own_daemon: DaemonProcess, leader: Leader
) -> None:
    async with puppet_engine(own_daemon, leader) as a:
        fence = await a.begin()
        await a.worker.map(a.device, 4, 1)
        await own_etcd.kill()
        own_daemon.kill()
        await own_daemon.ended()
        own_daemon.start()
        await a.worker.map(a.device, 2, 1)
        await a.leave(fence)
        await own_etcd.start()
        await own_daemon.ready(leader.store)
        assert (await leader.closed(a.device, fence)).charged == 6 * CHUNK


async def test_deaths_count_while_etcd_is_away(own_etcd: RealEtcd, own_daemon: DaemonProcess, leader: Leader) -> None:
    async with puppet_engine(own_daemon, leader) as a:
        fence = await a.begin()
        await a.worker.map(a.device, 4, 1)
        own_etcd.pause()
        a.worker.kill()
        assert await a.agent.ended() == SIGKILLED
        own_etcd.resume()
        state = await leader.closed(a.device, fence)
        assert (state.owners, state.open) == ((), None)


async def test_when_etcds_data_is_lost_owners_stay_and_fences_start_again(
    own_etcd: RealEtcd, own_daemon: DaemonProcess, leader: Leader, tmp_path: Path
) -> None:
    async with puppet_engine(own_daemon, leader, "a") as a, puppet_engine(own_daemon, leader, "b") as b:
        old = await a.restore(20, 1)
        await lose_data(own_etcd, tmp_path)
        await leader.elect()
        a.spec, b.spec = await leader.register_again(a.spec), await leader.register_again(b.spec)
        state = await leader.until(a.device, lambda state: state.epoch != old.epoch)
        assert [(owner.holder, owner.bytes.total) for owner in state.owners] == [(a.spec.holder, 20 * CHUNK)]
        assert state.closed == 0
        with pytest.raises(PuppetRefused, match="stale"):
            await a.enter(old)
        new = await b.begin()
        assert new.revision < old.revision + 100
        with pytest.raises(PuppetRefused, match="no_space"):
            await b.worker.map(b.device, 13, 2)
        await b.leave(new)
        await a.offload()


async def test_nothing_is_accepted_in_the_new_epoch_until_the_old_operation_is_over(
    own_etcd: RealEtcd, own_daemon: DaemonProcess, leader: Leader, tmp_path: Path
) -> None:
    async with puppet_engine(own_daemon, leader, "a") as a, puppet_engine(own_daemon, leader, "b") as b:
        old = await a.begin()
        await lose_data(own_etcd, tmp_path)
        await leader.elect()
        b.spec = await leader.register_again(b.spec)
        assert await leader.try_grant(b.spec, Order.RESTORE, CHUNK) is not None  # a leader that breaks rule 3
        new = await seat(leader, b.device)
        await own_daemon.until_said(f"epoch {new[0]}")
        with pytest.raises(PuppetRefused, match="timeout"):
            await b.agent.enter(b.device, new[0], new[1], 0.5)
        await a.worker.map(a.device, 4, 1)
        await a.leave(old)
        await b.agent.enter(b.device, new[0], new[1])
        await b.agent.leave(b.device, new[0], new[1])
        state = await leader.until(b.device, lambda state: state.epoch == new[0] and state.closed == new[1])
        assert state.charged == 4 * CHUNK


async def test_a_hung_operation_of_the_old_epoch_is_killed_at_its_limit(
    own_etcd: RealEtcd, own_daemon: DaemonProcess, leader: Leader, tmp_path: Path
) -> None:
    async with puppet_engine(own_daemon, leader, "a") as a:
        old = await a.begin(limit_s=1.0)
        await a.worker.map(a.device, 4, 1)
        a.agent.stop()
        await lose_data(own_etcd, tmp_path)
        await leader.elect()
        assert await a.agent.ended() == SIGKILLED
        state = await leader.until(a.device, lambda state: state.epoch != old.epoch)
        assert (state.owners, state.open, state.closed) == ((), None, 0)


async def test_a_restored_snapshot_is_refused_until_the_keys_are_deleted(
    own_etcd: RealEtcd, own_daemon: DaemonProcess, leader: Leader, tmp_path: Path
) -> None:
    async with puppet_engine(own_daemon, leader, "a") as a:
        await a.restore(1, 1)
        await own_etcd.stop()
        shutil.copytree(tmp_path / DATA, tmp_path / "snapshot")
        await own_etcd.start()
        await a.offload()
        await a.restore(2, 1)
        await own_etcd.stop()
        shutil.rmtree(tmp_path / DATA)
        shutil.copytree(tmp_path / "snapshot", tmp_path / DATA)
        await own_etcd.start()
        await own_daemon.until_said("went back to revision")
        async with asyncio.timeout(PATIENCE_S):
            while await leader.device(a.device) is not None:  # noqa: ASYNC110  # the key may be gone already
                await asyncio.sleep(0.05)
        a.spec = await leader.register_again(a.spec)
        fence = await leader.try_grant(a.spec, Order.OFFLOAD, 0)
        assert fence is not None
        with pytest.raises(PuppetRefused, match="stale"):
            await a.enter(fence)
        await leader.store.txn(
            [],
            [Delete(keys.ROOT + "tokens/", prefix=True), Delete(keys.ROOT + "seats/", prefix=True), Delete(keys.EPOCH)],
        )
        await own_daemon.ready(leader.store)
        a.chunks = []
        await a.offload()


async def test_what_does_not_decode_is_not_obeyed(own_daemon: DaemonProcess, leader: Leader) -> None:
    async with puppet_engine(own_daemon, leader, "a") as a:
        await a.restore(2, 1)
        for key in (keys.token(a.device), keys.seat(a.device), keys.spec("stranger")):
            await leader.store.txn([], [Put(key, b'{"v":1,"holder":[[[')])
        await own_daemon.until_said("counts as gone")
        await leader.store.txn([], [Delete(keys.token(a.device)), Delete(keys.seat(a.device))])
        await a.offload()


async def seat(leader: Leader, device: str) -> tuple[str, int]:
    """Epoch and revision of the seat that stands."""
    kv = await leader.store.get(keys.seat(device))
    assert kv is not None
    return (await ensure_epoch(leader.store)).id, kv.mod_revision
