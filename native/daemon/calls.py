"""What all calls of a connection need: refusals, the journal's disk, waiting for a change."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from native.daemon.device import Device
from native.protocol import Code

if TYPE_CHECKING:
    from native.daemon.node import Node

PERSIST_TIMEOUT = 4.0
"""Seconds for the journal's disk: under what a client waits beyond its own limit (`client.ANSWER_MARGIN`), so that it
hears of a slow disk from us and not from its deadline."""


class Denied(Exception):
    """The request is answered with `Refused`."""

    def __init__(self, code: Code, why: str) -> None:
        super().__init__(why)
        self.code = code


class Calls:
    """Base of the groups of calls; one for each connection."""

    def __init__(self, node: Node) -> None:
        self.node = node

    def device(self, name: str) -> Device:
        """By its id on this node, or by `<node>/<id>` as etcd has it. Raises `Denied`."""
        device = self.node.devices.get(name.removeprefix(f"{self.node.name}/"))
        if device is None:
            raise Denied(Code.NOT_FOUND, f"this node has no device {name}, it has {', '.join(self.node.devices)}")
        return device

    async def durable(self) -> None:
        """What changed so far is on disk. Raises TimeoutError after `PERSIST_TIMEOUT`."""
        async with asyncio.timeout(PERSIST_TIMEOUT):
            await self.node.keeper.durable()

    async def settled(self) -> None:
        """Draw the consequences of a change, and have it on disk."""
        self.node.settle()
        await self.durable()

    async def until(self, holds: Callable[[], bool], timeout_s: float) -> None:
        """Until it holds or time is up; look again which."""
        deadline = self.node.now() + timeout_s
        while not holds() and await self.ring_before(deadline):
            pass

    async def ring_before(self, deadline: float) -> bool:
        """Something changed before the deadline (monotonic seconds)."""
        return await _in_time(self.node.bell.wait(), deadline - self.node.now())


async def _in_time(work: Awaitable[None], seconds: float) -> bool:
    try:
        async with asyncio.timeout(max(0.0, seconds)):
            await work
    except TimeoutError:
        return False
    return True
