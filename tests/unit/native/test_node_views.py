"""Views in the whole node, in one process: when nobody can open one any more."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from coordinator.core.model import Order
from native import protocol
from native.daemon.node import Node
from native.daemon.session import EngineSession
from native.daemon.views import NoView
from native.processes import Identity, boot_id, reopen, start_time
from native.protocol import (
    CloseView,
    Code,
    Done,
    Hello,
    Kind,
    Map,
    Mapped,
    Offered,
    OfferView,
    OpenView,
    Refused,
    Unmap,
    Viewed,
)
from tests.helpers.leader import Registered
from tests.helpers.node_in_place import MIB, Place, place


@asynccontextmanager
async def neighbour(at: Place) -> AsyncIterator[EngineSession]:
    """A worker of another engine."""
    spec = await at.leader.register("b", ("n/0",))
    process = subprocess.Popen(["sleep", "1000"])  # noqa: ASYNC220
    try:
        yield await welcomed(at.node, process.pid, "b", spec)
    finally:
        process.kill()
        process.wait()


async def welcomed(node: Node, pid: int, engine: str, spec: Registered) -> EngineSession:
    session = EngineSession(node, reopen(Identity(pid, start_time(pid), boot_id())))
    await session.handle(Hello(engine, spec.holder.nonce, "worker"))
    return session


async def mapped(at: Place, count: int) -> tuple[int, ...]:
    """Chunks of the first engine's, which is in an operation from now on."""
    await at.enter(await at.leader.grant(at.spec, Order.RESTORE, 8 * MIB))
    reply = (await at.worker.handle(Map(at.device, Kind.KV, count, 1, 5.0))).reply
    assert isinstance(reply, Mapped)
    return reply.chunks


async def offered(at: Place, session: EngineSession, chunks: tuple[int, ...]) -> int:
    reply = (await session.handle(OfferView(at.device, chunks))).reply
    assert isinstance(reply, Offered)
    return reply.view


async def opened(session: EngineSession, view: int) -> protocol.Reply:
    answer = await session.handle(OpenView(view))
    answer.done()
    return answer.reply


async def test_a_dead_engines_views_are_over_before_its_pages_are_back(tmp_path: Path) -> None:
    """Also of those pages that nobody looks at: they are anybody's at once, and the others are waited for."""
    async with place(tmp_path) as at, neighbour(at) as other:
        looked_at, alone = [(chunk,) for chunk in await mapped(at, 2)]
        views = [await offered(at, at.worker, chunks) for chunks in (looked_at, alone)]
        assert isinstance(await opened(other, views[0]), Viewed)
        dead = at.worker._caller()
        at.node.engines._bury(dead)
        owners = [at.node.devices["0"].pool.owner_of(chunk) for (chunk,) in (looked_at, alone)]
        assert owners == [dead.owner, None]
        for view in views:
            with pytest.raises(NoView):
                at.node.views.open(view, other._caller().number, "b")


async def test_a_view_that_is_offered_while_its_pages_go_goes_with_them(tmp_path: Path) -> None:
    async with place(tmp_path) as at, neighbour(at) as other:
        chunks = await mapped(at, 1)
        first = await offered(at, at.worker, chunks)
        assert isinstance(await opened(other, first), Viewed)
        beside = await welcomed(at.node, at.process.pid, "a", at.spec)
        going = asyncio.create_task(at.worker.handle(Unmap(at.device, chunks)))
        held = at.node.views.get(first)
        assert held is not None
        while not held.revoked:
            await at.node.bell.wait()
        second = await offered(at, beside, chunks)
        await other.handle(CloseView(first))
        assert (await going).reply == Done()
        assert at.node.devices["0"].pool.owner_of(chunks[0]) is None
        refused = await opened(other, second)
        assert isinstance(refused, Refused)
        assert refused.code is Code.NOT_FOUND
