"""Weights of one content on one device: the same pages for several engines, read-only, charged once, whoever dies."""

from __future__ import annotations

import pytest

from coordinator.core.model import Device, Order, Shared
from tests.helpers.daemon import DaemonProcess
from tests.helpers.leader import Leader
from tests.helpers.puppet_engine import CHUNK, PuppetEngine, puppet_engine
from tests.integration.daemon.test_tokens import ALL, refused

WEIGHTS, KV = 20, 4
"""Chunks; two engines fit beside each other only because they share."""
DIGEST = "content:layout"
SIGKILLED = -9


async def first(engine: PuppetEngine) -> list[int]:
    """Resident with weights of its own, which it offers; the ids of their chunks."""
    fence = await engine.begin()
    weights = await engine.worker.map(engine.device, WEIGHTS, 7)
    await engine.worker.map(engine.device, KV, 1, "kv")
    await engine.worker.call("offer_share", engine.device, DIGEST, weights)
    await engine.leave(fence)
    return weights


async def joined(engine: PuppetEngine, fill: int = 7) -> list[int]:
    """Resident in the weights that another offers."""
    fence = await engine.begin()
    seen = await engine.worker.call("open_share", engine.device, DIGEST)
    await engine.worker.map(engine.device, KV, 2, "kv")
    await engine.leave(fence)
    assert isinstance(seen, list)
    assert [byte for _, byte in seen] == [fill] * WEIGHTS
    return [chunk for chunk, _ in seen]


async def kv_of(engine: PuppetEngine, weights: list[int]) -> list[int]:
    fills = await engine.worker.fills()
    return [int(chunk) for chunk in fills if int(chunk) not in weights]  # type: ignore[attr-defined]


async def owner_left(engine: PuppetEngine, weights: list[int]) -> None:
    """It gives back its weights, which others may share, and its KV."""
    fence = await engine.begin(Order.OFFLOAD, size=0)
    await engine.worker.unmap(engine.device, [*weights, *await kv_of(engine, weights)])
    await engine.leave(fence)


async def never_told(engine: PuppetEngine) -> None:
    """It asks for the share and hangs up before it hears what it was given."""
    fence = await engine.begin()
    await engine.worker.call("open_share_unread", engine.device, DIGEST)
    await engine.worker.call("hang_up")
    await engine.leave(fence)


async def gone(engine: PuppetEngine, weights: list[int]) -> None:
    fence = await engine.begin(Order.OFFLOAD, size=0)
    await engine.worker.unmap(engine.device, await kv_of(engine, weights))
    await engine.worker.call("close_share", engine.device, DIGEST, weights)
    await engine.leave(fence)


def held(state: Device) -> dict[str, tuple[int, int]]:
    """Chunks with weights and with KV by engine, of those that hold any."""
    assert state.charged <= state.capacity
    assert state.shared in ((), (Shared(DIGEST, WEIGHTS * CHUNK),))
    found = {o.holder.engine: (o.bytes.weights // CHUNK, o.bytes.kv // CHUNK) for o in state.owners}
    return {engine: chunks for engine, chunks in found.items() if any(chunks)}


async def charged(leader: Leader, device: str) -> dict[str, tuple[int, int]]:
    """`held`, as the last operation left it."""
    return held(await leader.closed(device))


async def settles(leader: Leader, device: str, wanted: dict[str, tuple[int, int]]) -> None:
    """Until that is `held`: a death is published when it is found, not when it happens."""
    await leader.until(device, lambda state: held(state) == wanted)


def name(engine: PuppetEngine) -> str:
    return engine.spec.holder.engine


async def test_two_engines_of_one_content_lie_in_the_same_pages_and_are_charged_once(
    daemon: DaemonProcess, leader: Leader
) -> None:
    async with puppet_engine(daemon, leader, "a") as a, puppet_engine(daemon, leader, "b") as b:
        weights = await first(a)
        assert await joined(b) == weights
        assert await charged(leader, a.device) == {name(a): (WEIGHTS, KV), name(b): (0, KV)}
        await daemon.until_sampled()
        await daemon.until_sampled()  # both have a right to these pages: nobody is ended as a trespasser
        assert (a.worker.alive, b.worker.alive) == (True, True)
        with refused("not_open"):
            await b.worker.call("close_share", b.device, DIGEST, [])


async def test_the_owner_leaves_and_the_pages_stay_with_who_shares_them(daemon: DaemonProcess, leader: Leader) -> None:
    async with puppet_engine(daemon, leader, "a") as a, puppet_engine(daemon, leader, "b") as b:
        weights = await first(a)
        await joined(b)
        fence = await a.begin(Order.OFFLOAD, size=0)
        with refused("bad_request"):
            await a.worker.call("unmap_without_unmapping", a.device, weights[:1])  # a part of it
        for _ in range(2):  # the second as after a lost answer
            await a.worker.unmap(a.device, [*weights, *await kv_of(a, weights)])
        await a.leave(fence)
        assert await charged(leader, a.device) == {name(b): (WEIGHTS, KV)}
        assert await b.worker.call("fills") == {
            str(c): 7 if c in weights else 2 for c in [*weights, *await kv_of(b, weights)]
        }
        assert await joined(a) == weights  # and it comes back without a copy
        await gone(b, weights)
        assert await charged(leader, a.device) == {name(a): (WEIGHTS, KV)}
        await gone(a, weights)
        assert await charged(leader, a.device) == {}
        await b.restore(ALL, 3)  # blank, every one of them


async def test_kill_9_of_the_owner(daemon: DaemonProcess, leader: Leader) -> None:
    async with puppet_engine(daemon, leader, "a") as a, puppet_engine(daemon, leader, "b") as b:
        weights = await first(a)
        await joined(b)
        a.worker.kill()
        await settles(leader, b.device, {name(b): (WEIGHTS, KV)})
        fills = await b.worker.call("fills")
        assert {fills[str(chunk)] for chunk in weights} == {7}  # type: ignore[index]
        await gone(b, weights)
        await b.restore(ALL, 3)


async def test_kill_9_of_a_sharer(daemon: DaemonProcess, leader: Leader) -> None:
    async with puppet_engine(daemon, leader, "a") as a, puppet_engine(daemon, leader, "b") as b:
        weights = await first(a)
        await joined(b)
        b.worker.kill()
        await settles(leader, a.device, {name(a): (WEIGHTS, KV)})
        await owner_left(a, weights)
        assert await charged(leader, a.device) == {}


async def test_over_a_restart_of_the_daemon(own_daemon: DaemonProcess, leader: Leader) -> None:
    async with puppet_engine(own_daemon, leader, "a") as a, puppet_engine(own_daemon, leader, "b") as b:
        weights = await first(a)
        await joined(b)
        own_daemon.kill()
        await own_daemon.ended()
        a.worker.kill()
        await a.worker.ended()
        own_daemon.start()
        await own_daemon.ready(leader.store)
        await settles(leader, b.device, {name(b): (WEIGHTS, KV)})
        assert (await leader.closed(b.device)).shared == ()  # who could hand the pages back is dead: nobody can join
        fills = await b.worker.call("fills")
        assert {fills[str(chunk)] for chunk in weights} == {7}  # type: ignore[index]
        await gone(b, weights)
        assert await charged(leader, b.device) == {}
        await b.restore(ALL, 3)


async def test_over_a_restart_whoever_can_still_join(own_daemon: DaemonProcess, leader: Leader) -> None:
    async with puppet_engine(own_daemon, leader, "a") as a, puppet_engine(own_daemon, leader, "b") as b:
        weights = await first(a)
        own_daemon.kill()
        await own_daemon.ended()
        own_daemon.start()
        await own_daemon.ready(leader.store)
        await leader.until(a.device, lambda state: bool(state.owners))
        assert (await leader.closed(a.device)).shared == ()
        await a.worker.call("listen", True)  # it hands back
        await leader.until(a.device, lambda state: state.shared == (Shared(DIGEST, WEIGHTS * CHUNK),))
        assert await joined(b) == weights
        assert await charged(leader, a.device) == {name(a): (WEIGHTS, KV), name(b): (0, KV)}


async def viewed_by(viewer: PuppetEngine, owner: PuppetEngine, weights: list[int]) -> int:
    """Two chunks of the owner's, by somebody who does not let go when asked."""
    view = await owner.worker.call("offer_view", owner.device, weights[:2], "")
    assert isinstance(view, int)
    await viewer.worker.call("listen", False)
    await viewer.worker.call("open_view", view)
    return view


@pytest.mark.parametrize("daemon_options", [{"more": ("--view-grace", "2")}])
async def test_pages_that_were_inherited_are_free_when_nobody_views_them(
    own_daemon: DaemonProcess, leader: Leader
) -> None:
    async with (
        puppet_engine(own_daemon, leader, "a") as a,
        puppet_engine(own_daemon, leader, "b") as b,
        puppet_engine(own_daemon, leader, "c") as c,
    ):
        weights = await first(a)
        await viewed_by(c, a, weights)
        await joined(b)
        a.worker.kill()
        await settles(leader, b.device, {name(b): (WEIGHTS, KV)})
        await gone(b, weights)  # waits
        assert await c.worker.ended() == SIGKILLED
        await settles(leader, b.device, {})


@pytest.mark.parametrize("daemon_options", [{"more": ("--view-grace", "60")}])
async def test_kill_9_of_an_heir_whose_pages_are_viewed(own_daemon: DaemonProcess, leader: Leader) -> None:
    async with puppet_engine(own_daemon, leader, "a") as a, puppet_engine(own_daemon, leader, "c") as c:
        weights = await first(a)
        view = await viewed_by(c, a, weights)
        async with puppet_engine(own_daemon, leader, "b") as b:
            await joined(b)
            a.worker.kill()
            await settles(leader, b.device, {name(b): (WEIGHTS, KV)})
            b.worker.kill()
            await b.agent.ended()
        state = await leader.until(c.device, lambda state: state.charged == 2 * CHUNK)
        assert [(owner.holder, owner.alive) for owner in state.owners] == [(b.spec.holder, False)]
        assert set((await c.worker.call("seen", view)).values()) == {7}  # type: ignore[attr-defined]
        await c.worker.call("close_view", view)
        await leader.until(c.device, lambda state: not state.owners)
        assert c.worker.alive


@pytest.mark.parametrize("daemon_options", [{"more": ("--view-grace", "60")}])
async def test_what_was_inherited_and_never_received_is_nobody_elses_while_it_is_viewed(
    own_daemon: DaemonProcess, leader: Leader
) -> None:
    async with (
        puppet_engine(own_daemon, leader, "a") as a,
        puppet_engine(own_daemon, leader, "b") as b,
        puppet_engine(own_daemon, leader, "c") as c,
    ):
        weights = await first(a)
        view = await viewed_by(c, a, weights)
        fence = await b.begin()
        await b.worker.call("open_share_unread", b.device, DIGEST)
        a.worker.kill()
        await settles(leader, b.device, {name(b): (WEIGHTS, 0)})
        await b.worker.call("hang_up")
        await c.worker.call("await_heard", view)
        assert await b.worker.call("open_share", b.device, DIGEST) is None  # it is its own for now
        await b.leave(fence)
        assert await charged(leader, b.device) == {name(b): (WEIGHTS, 0)}
        await c.worker.call("close_view", view)
        await settles(leader, b.device, {})
        await b.restore(ALL, 3)  # blank, every one of them


async def test_who_never_received_a_share_has_none(daemon: DaemonProcess, leader: Leader) -> None:
    async with puppet_engine(daemon, leader, "a") as a, puppet_engine(daemon, leader, "b") as b:
        weights = await first(a)
        await never_told(b)
        await owner_left(a, weights)
        await settles(leader, a.device, {})
        assert b.worker.alive


@pytest.mark.parametrize("daemon_options", [{"more": ("--host-ram", "6MiB")}])
async def test_who_has_joined_can_spare_its_master_as_the_owner_can(own_daemon: DaemonProcess, leader: Leader) -> None:
    async with (
        puppet_engine(own_daemon, leader, "a") as a,
        puppet_engine(own_daemon, leader, "b") as b,
        puppet_engine(own_daemon, leader, "c") as c,
    ):
        await first(a)
        await a.worker.call("create_master", 4 << 20)
        await a.worker.call("seal_master", DIGEST)
        await joined(b)
        for engine in (a, b):
            await engine.worker.call("listen", True)
            await engine.worker.call("read_master", DIGEST, 1)
        await c.worker.call("create_master", 4 << 20)
        for engine in (a, b):  # each time there is not enough room yet, they are asked again
            assert set(await engine.worker.call("heard")) == {DIGEST}  # type: ignore[call-overload]


async def test_what_cannot_be_offered_or_opened(daemon: DaemonProcess, leader: Leader) -> None:
    async with puppet_engine(daemon, leader, "a") as a, puppet_engine(daemon, leader, "b") as b:
        weights = await first(a)
        fence = await b.begin()
        for chunks in (weights[:1], await b.worker.map(b.device, 1, 1, "kv"), [4711]):
            with refused("bad_request"):
                await b.worker.call("offer_share", b.device, "another", chunks)
        assert await b.worker.call("open_share", b.device, "another") is None
        own = await b.worker.map(b.device, 1, 1)
        await b.worker.call("offer_share", b.device, DIGEST, own)  # it is there: b keeps a copy of its own
        await b.leave(fence)
        fence = await a.begin()
        assert await a.worker.call("open_share", a.device, DIGEST) is None  # its own
        with refused("bad_request"):
            await a.worker.call("offer_share", a.device, "another", weights)
        await a.leave(fence)


async def test_pages_are_offered_in_an_operation_or_not(daemon: DaemonProcess, leader: Leader) -> None:
    """To one who starts while the owner just runs; but nobody opens them outside an operation of its own."""
    async with puppet_engine(daemon, leader, "a") as a, puppet_engine(daemon, leader, "b") as b:
        fence = await a.begin()
        weights = await a.worker.map(a.device, WEIGHTS, 7)
        await a.leave(fence)
        await a.worker.call("offer_share", a.device, DIGEST, weights)
        with refused("not_open"):
            await b.worker.call("open_share", b.device, DIGEST)
        assert await joined(b) == weights
        await gone(a, weights)
        assert await charged(leader, a.device) == {name(b): (WEIGHTS, KV)}
        with refused("bad_request"):  # what it has no more
            await a.worker.call("offer_share", a.device, "another", weights)


async def test_a_part_that_cannot_be_unmapped_takes_nobodys_view(daemon: DaemonProcess, leader: Leader) -> None:
    async with puppet_engine(daemon, leader, "a") as a, puppet_engine(daemon, leader, "b") as b:
        weights = await first(a)
        view = await a.worker.call("offer_view", a.device, weights[:2], "")
        await b.worker.call("open_view", view)
        fence = await a.begin(Order.OFFLOAD, size=0)
        with refused("bad_request"):
            await a.worker.unmap(a.device, weights[:2])
        await a.leave(fence)
        await b.worker.call("close_view", view)
        assert len(await b.worker.call("open_view", view)) == 2  # type: ignore[arg-type]


async def test_who_has_joined_keeps_it_though_another_answer_never_reaches_it(
    daemon: DaemonProcess, leader: Leader
) -> None:
    async with puppet_engine(daemon, leader, "a") as a, puppet_engine(daemon, leader, "b") as b:
        weights = await first(a)
        await joined(b)
        await never_told(b)
        await owner_left(a, weights)
        assert await charged(leader, a.device) == {name(b): (WEIGHTS, KV)}
