"""Views: pages that their owner lets others map read-only, and how they get them back."""

from __future__ import annotations

import pytest

from tests.helpers.daemon import DaemonProcess
from tests.helpers.leader import Leader
from tests.helpers.puppet import PuppetRefused
from tests.helpers.puppet_engine import CHUNK, PuppetEngine, puppet_engine

SIGKILLED = -9


async def offered(owner: PuppetEngine, fill: int, count: int = 3, to: str = "") -> object:
    await owner.restore(count, fill)
    return await owner.worker.call("offer_view", owner.device, owner.chunks, to)


async def views(engine: PuppetEngine) -> list[dict[str, object]]:
    told = await engine.worker.call("stats")
    return told["views"]  # type: ignore[index,no-any-return]


async def test_a_view_shows_the_owners_pages_and_is_charged_to_nobody_else(
    daemon: DaemonProcess, leader: Leader
) -> None:
    async with puppet_engine(daemon, leader, "a") as a, puppet_engine(daemon, leader, "b") as b:
        view = await offered(a, 7)
        assert await b.worker.call("open_view", view) == {"0": 7, "1": 7, "2": 7}
        state = await leader.closed(a.device)
        assert [(owner.holder, owner.bytes.total) for owner in state.owners] == [(a.spec.holder, 3 * CHUNK)]
        assert [(one["id"], len(one["holders"])) for one in await views(a)] == [(view, 1)]  # type: ignore[arg-type]
        await b.worker.call("close_view", view)  # no operation is open: letting go is always allowed
        await b.worker.call("close_view", view)
        assert [one["holders"] for one in await views(a)] == [[]]


async def test_more_chunks_than_descriptors_go_in_a_frame(own_daemon: DaemonProcess, leader: Leader) -> None:
    async with puppet_engine(own_daemon, leader, "a") as a, puppet_engine(own_daemon, leader, "b") as b:
        view = await offered(a, 7, 32)
        seen = await b.worker.call("open_view", view)
        assert isinstance(seen, dict)
        assert (len(seen), set(seen.values())) == (32, {7})


async def test_who_is_asked_and_lets_go_lives_on(daemon: DaemonProcess, leader: Leader) -> None:
    async with puppet_engine(daemon, leader, "a") as a, puppet_engine(daemon, leader, "b") as b:
        view = await offered(a, 7)
        await b.worker.call("listen", True)
        await b.worker.call("open_view", view)
        await a.offload()
        assert await b.worker.call("heard") == [view]
        assert await views(b) == []
        with pytest.raises(PuppetRefused, match="not_found"):
            await b.worker.call("open_view", view)
        await b.restore(32, 2)


@pytest.mark.parametrize("how", ["deaf", "stopped"])
async def test_who_does_not_let_go_is_killed_before_the_pages_are_anybodys(
    daemon: DaemonProcess, leader: Leader, how: str
) -> None:
    async with (
        puppet_engine(daemon, leader, "a") as a,
        puppet_engine(daemon, leader, "b") as b,
        puppet_engine(daemon, leader, "c") as c,
    ):
        view = await offered(a, 7)
        await b.worker.call("listen", False)
        await b.worker.call("open_view", view)
        if how == "stopped":
            b.worker.stop()
        await a.worker.call("revoke_view", view, 0.5)
        assert await b.worker.ended() == SIGKILLED
        assert await b.agent.ended() == SIGKILLED
        await a.offload()
        await c.restore(32, 3)


@pytest.mark.parametrize("daemon_options", [{"more": ("--view-grace", "0.3")}])
async def test_unmapping_waits_for_a_deaf_holder_and_then_kills_it(own_daemon: DaemonProcess, leader: Leader) -> None:
    async with puppet_engine(own_daemon, leader, "a") as a, puppet_engine(own_daemon, leader, "b") as b:
        view = await offered(a, 7)
        await b.worker.call("open_view", view)
        await a.offload()
        assert await b.worker.ended() == SIGKILLED


@pytest.mark.parametrize("daemon_options", [{"more": ("--view-grace", "60")}])
async def test_pages_of_a_dead_owner_come_back_when_nobody_sees_them(own_daemon: DaemonProcess, leader: Leader) -> None:
    """Until then they are charged to it: nobody else gets a page that somebody reads."""
    async with puppet_engine(own_daemon, leader, "b") as b, puppet_engine(own_daemon, leader, "c") as c:
        async with puppet_engine(own_daemon, leader, "a") as a:
            view = await offered(a, 7, 2)
            fence = await a.begin()
            await a.worker.map(a.device, 4, 7)
            await a.leave(fence)
            await b.worker.call("listen", False)
            await b.worker.call("open_view", view)
            a.worker.kill()
            await a.agent.ended()
        state = await leader.until(b.device, lambda state: state.charged == 2 * CHUNK)
        assert [(owner.holder, owner.alive) for owner in state.owners] == [(a.spec.holder, False)]
        assert await b.worker.call("seen", view) == {"0": 7, "1": 7}
        await b.worker.call("close_view", view)
        await leader.until(b.device, lambda state: not state.owners)
        assert b.worker.alive
        await c.restore(32, 3)


async def test_a_view_is_for_whom_it_was_offered_to(daemon: DaemonProcess, leader: Leader) -> None:
    async with puppet_engine(daemon, leader, "a") as a, puppet_engine(daemon, leader, "b") as b:
        view = await offered(a, 7, to="somebody else")
        for number in (view, 4711):
            with pytest.raises(PuppetRefused, match="not_found"):
                await b.worker.call("open_view", number)
        with pytest.raises(PuppetRefused, match="bad_request"):
            await b.worker.call("offer_view", a.device, a.chunks, "")
        with pytest.raises(PuppetRefused, match="bad_request"):
            await b.worker.call("revoke_view", view, 1.0)
        view = await a.worker.call("offer_view", a.device, a.chunks, b.spec.holder.engine)
        assert await b.worker.call("open_view", view) == {"0": 7, "1": 7, "2": 7}


@pytest.mark.parametrize("daemon_options", [{"more": ("--view-grace", "60")}])
async def test_a_restarted_daemon_calls_views_in(own_daemon: DaemonProcess, leader: Leader) -> None:
    """It knows who may still read which pages: of the living, and of an owner that died meanwhile."""
    async with (
        puppet_engine(own_daemon, leader, "a") as a,
        puppet_engine(own_daemon, leader, "b") as b,
        puppet_engine(own_daemon, leader, "dead") as dead,
    ):
        of_dead = await offered(dead, 5, 2)
        view = await offered(a, 7)
        for one in (view, of_dead):
            await b.worker.call("open_view", one)
        own_daemon.kill()
        await own_daemon.ended()
        dead.worker.kill()
        await dead.worker.ended()
        own_daemon.start()
        await own_daemon.ready(leader.store)
        assert (await leader.closed(a.device)).charged == 5 * CHUNK
        with pytest.raises(PuppetRefused, match="not_found"):
            await b.worker.call("open_view_anew", view)
        await b.worker.call("listen", True)
        await leader.until(a.device, lambda state: state.charged == 3 * CHUNK)
        await a.offload()
        assert set(await b.worker.call("heard")) == {view, of_dead}  # type: ignore[call-overload]
        await b.restore(32, 2)


@pytest.mark.parametrize("daemon_options", [{"more": ("--sample", "0.3")}])
async def test_who_has_pages_mapped_that_it_gave_back_is_ended(own_daemon: DaemonProcess, leader: Leader) -> None:
    """It could write to what is another's by now. Those who only see their own and what they view are left alone."""
    async with puppet_engine(own_daemon, leader, "a") as a, puppet_engine(own_daemon, leader, "b") as b:
        view = await offered(b, 7)
        await a.restore(4, 1)
        await a.worker.call("open_view", view)
        await own_daemon.until_sampled()
        await own_daemon.until_sampled()
        fence = await a.begin()
        await a.worker.call("unmap_without_unmapping", a.device, a.chunks)
        assert await a.worker.ended() == SIGKILLED
        assert "4 chunks mapped that it gave back" in own_daemon.said()
        await leader.closed(a.device, fence)
        assert b.worker.alive


@pytest.mark.parametrize("daemon_options", [{"more": ("--sample", "0.3")}])
async def test_who_closes_a_view_and_goes_on_looking_is_ended(own_daemon: DaemonProcess, leader: Leader) -> None:
    async with puppet_engine(own_daemon, leader, "a") as a, puppet_engine(own_daemon, leader, "b") as b:
        view = await offered(a, 7)
        await b.worker.call("open_view", view)
        await b.worker.call("close_without_unmapping", view)
        assert await b.worker.ended() == SIGKILLED


async def test_who_asks_to_unmap_anothers_chunks_takes_nobodys_view(daemon: DaemonProcess, leader: Leader) -> None:
    async with puppet_engine(daemon, leader, "a") as a, puppet_engine(daemon, leader, "b") as b:
        view = await offered(a, 7)
        seen = await b.worker.call("open_view", view)
        theirs = [int(chunk) for chunk in await a.worker.fills()]  # type: ignore[attr-defined]
        fence = await b.begin()
        with pytest.raises(PuppetRefused, match="bad_request"):
            await b.worker.unmap(b.device, theirs)
        await b.leave(fence)
        assert [(one["id"], len(one["holders"])) for one in await views(a)] == [(view, 1)]  # type: ignore[arg-type]
        assert seen == {"0": 7, "1": 7, "2": 7}
