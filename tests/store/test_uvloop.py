"""The store on uvloop, which the coordinator runs on: calls, watch, session, election, embedded etcd."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from pathlib import Path

import uvloop

from coordinator.embedded import embedded
from coordinator.errors import StoreUnavailable
from coordinator.store import connect
from coordinator.store.base import Listing
from coordinator.store.election import Election
from coordinator.store.follow import follow
from coordinator.store.session import open_session
from tests.helpers.store import keys_of, put, put_once, take


def test_everything_works_on_uvloop(tmp_path: Path) -> None:
    async def main() -> None:
        async with embedded(tmp_path / "etcd", tmp_path / "etcd.log", environ={}) as etcd:
            store, hasty = (connect([etcd.url], stall=1.0, call_timeout=limit, environ={}) for limit in (30.0, 0.5))
            async with aclosing(follow(store, "/a/", doubt=5.0)) as updates, open_session(store, 30) as session:
                assert isinstance((await take(updates, 1))[0], Listing)
                await put(store, "/a/1", lease=session.lease)
                assert keys_of([(await take(updates, 1))[0]]) == ["/a/1"]  # type: ignore[list-item]
                await asyncio.wait_for(Election(store, session, b"", prefix="/e/").campaign(), 60)
                await etcd.stop()
                try:
                    await hasty.get("/a/1")
                except StoreUnavailable:
                    await etcd.start()
                await put_once(store, "/a/2")
                assert keys_of([(await take(updates, 1))[0]]) == ["/a/2"]  # type: ignore[list-item]
            await store.close()
            await hasty.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
