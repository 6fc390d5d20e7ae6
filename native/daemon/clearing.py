"""Gets other processes out of pages: asks those that have views of them open, then kills those that keep them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, NamedTuple

from native.daemon.engines import Member
from native.daemon.views import View

if TYPE_CHECKING:
    from native.daemon.node import Node

log = logging.getLogger(__name__)

KILL_S = 10.0
"""How long a killed process has to end before it is said that it does not."""


class Stuck(Exception):
    """A process that was killed has not ended: its view stays, and the pages with it."""


class _Left(NamedTuple):
    what: str
    views: Callable[[], Collection[View]]
    then: Callable[[], None]


class Clearing:
    """`run` is to run all the time: it clears what the dead have left."""

    def __init__(self, node: Node, grace_s: float) -> None:
        """`grace_s`: seconds that a view's holder has where nobody says otherwise (its owner unmaps, or is dead)."""
        self._node = node
        self._grace_s = grace_s
        self._left: asyncio.Queue[_Left] = asyncio.Queue()

    def bury(self, member: Member) -> None:
        """A dead process's pages are viewed by others: get those out, then take the pages."""
        node = self._node
        self.soon(f"pages of {member}", lambda: node.viewed(member), lambda: node.take_pages(member))

    def soon(self, what: str, views: Callable[[], Collection[View]], then: Callable[[], None]) -> None:
        """Get everybody out of these views, however long that takes, and call `then`. `what` is for the log."""
        self._left.put_nowait(_Left(what, views, then))

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            while True:
                group.create_task(self._clear_after(await self._left.get()))

    async def clear_pages(self, device: str, chunks: Collection[int]) -> None:
        """As `clear`, of all views that show one of these pages, also of those that are offered meanwhile."""
        while views := self._node.views.touching(device, chunks):
            await self.clear(views)

    async def clear(self, views: Collection[View], grace_s: float | None = None) -> None:
        """Revoke these views; returns when nobody has one open.

        Raises:
            Stuck: somebody was killed for it and has not ended within `KILL_S`.
        """
        node = self._node
        grace_s = self._grace_s if grace_s is None else grace_s
        for view in views:
            for process in node.views.revoke(view):
                node.notices.let_go(process, view.id)
        node.settle()
        if await self._empty(views, grace_s):
            return
        stubborn = {process for view in views for process in view.holders}
        for member in node.engines:
            if member.number in stubborn:
                node.engines.doom(member.holder, f"{member} did not let go of a view within {grace_s:g} s")
        if not await self._empty(views, KILL_S):
            raise Stuck("a process that was killed for not letting go of a view has not ended")

    async def _empty(self, views: Collection[View], seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                while any(view.holders for view in views):
                    await self._node.bell.wait()
        except TimeoutError:
            return not any(view.holders for view in views)
        return True

    async def _clear_after(self, left: _Left) -> None:
        while views := left.views():
            try:
                await self.clear(views)
            except Stuck as error:
                log.error("%s do not come back: %s", left.what, error)
        left.then()
