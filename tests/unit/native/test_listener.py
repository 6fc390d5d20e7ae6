"""What the daemon asks of an engine's process, and what must not hold it up."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

from native.listener import Listener
from native.protocol import News
from tests.helpers.eventually import eventually
from tests.helpers.played_daemon import VIEW, played_daemon

PATIENCE_S = 30.0


async def test_a_view_is_let_go_of_while_the_process_cannot_spare_a_master(tmp_path: Path) -> None:
    """A switch is under way, say, that waits for that very view. The wish is one, however often it is uttered."""
    spared: list[str] = []
    let_go: list[int] = []
    begun, over = threading.Event(), threading.Event()

    def spare(digest: str) -> None:
        begun.set()
        assert over.wait(PATIENCE_S)
        spared.append(digest)

    async with played_daemon(tmp_path) as daemon:
        listener = Listener(daemon.client(), let_go.append, spare)
        listener.start()
        try:
            daemon.news.put_nowait(News(1, (), ("a",)))
            await eventually(begun.is_set)
            for number in (2, 3):
                daemon.news.put_nowait(News(number, (), ("a",)))
            daemon.news.put_nowait(News(4, (VIEW,), ("b",)))
            await eventually(lambda: let_go == [VIEW])
            assert spared == []
            over.set()
            await eventually(lambda: len(spared) == 3)
            assert spared == ["a", "a", "b"]  # one that is uttered later is granted later
            daemon.news.put_nowait(News(5, (), ("a",)))
            await eventually(lambda: len(spared) == 4)
        finally:
            over.set()
            await asyncio.to_thread(listener.close)
