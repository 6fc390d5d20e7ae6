"""Calls about host memory: masters and saved KV."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

from native import protocol
from native.connections import Answer
from native.daemon.calls import Calls, Denied
from native.daemon.engines import Member
from native.daemon.masters import Master, MasterFailed, NoMaster, NoRoom, NotThat, Short
from native.protocol import Code

if TYPE_CHECKING:
    from native.daemon.node import Node

SPARE_S = 5.0
"""How long a call waits for masters that others were asked to let go of."""
MISSED_S = 3.0
"""How long a call waits for a master that somebody may hand back: engines notice a restart within a fraction of it."""

T = TypeVar("T")


class HostCalls(Calls):
    """Of one connection: what it creates and does not seal goes with it."""

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        self._master: Master | None = None

    def closed(self) -> None:
        if self._master is not None:
            self.node.masters.drop(self._master)
            self.node.settle()

    async def handle(self, request: protocol.MasterRequest, member: Member, beside: Sequence[int]) -> Answer:
        """Raises `Denied`, TimeoutError (the journal)."""
        match request:
            case protocol.CreateMaster():
                return await self._create(request, member)
            case protocol.SealMaster():
                return await self._seal(request)
            case protocol.OpenMaster():
                return await self._open(request, member)
            case protocol.ReleaseMaster():
                self.node.masters.release(request.digest, member.number)
            case protocol.ReportHost():
                await self._roomy(lambda: self._report(member, request.saved_kv))
            case protocol.HandBackMaster():
                await self._take_back(request, member, beside)
        await self.settled()
        return Answer(protocol.Done())

    async def _create(self, request: protocol.CreateMaster, member: Member) -> Answer:
        if self._master is not None:
            self.node.masters.drop(self._master)
            self._master = None
        try:
            master = await self._roomy(lambda: self.node.masters.create(request.size, member.number))
        except MasterFailed as error:
            raise Denied(Code.FAILED, str(error)) from error
        self._master = master
        self.node.settle()
        return Answer(protocol.Master(master.size), (master.descriptor,))

    async def _seal(self, request: protocol.SealMaster) -> Answer:
        if self._master is None:
            raise Denied(Code.NOT_FOUND, "no master was created on this connection")
        try:
            await self.node.masters.seal(self._master, request.digest)
        except (OSError, ValueError) as error:
            raise Denied(Code.FAILED, f"the master cannot be read: {error}") from error
        self._master = None
        await self.settled()
        return Answer(protocol.Done())

    async def _open(self, request: protocol.OpenMaster, member: Member) -> Answer:
        await self.until(lambda: not self.node.masters.missed(request.digest), MISSED_S)
        try:
            descriptor, size = self.node.masters.open(request.digest, member.number)
        except NoMaster as error:
            raise Denied(Code.NOT_FOUND, str(error)) from error
        except OSError as error:
            raise Denied(Code.FAILED, f"the master cannot be opened: {error}") from error
        try:
            await self.settled()
        except BaseException:
            os.close(descriptor)
            raise
        return Answer(protocol.Master(size), (descriptor,), done=lambda: os.close(descriptor))

    async def _take_back(self, request: protocol.HandBackMaster, member: Member, beside: Sequence[int]) -> None:
        if len(beside) != 1:
            raise Denied(Code.BAD_REQUEST, f"one descriptor goes with a master, {len(beside)} came")
        try:
            await self.node.masters.hand_back(request.digest, beside[0], member.number)
        except (NotThat, OSError, ValueError) as error:
            raise Denied(Code.BAD_REQUEST, str(error)) from error

    async def _report(self, member: Member, saved_kv: int) -> None:
        self.node.masters.report(member.number, saved_kv)

    async def _roomy(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """`attempt` it; where others could make room, ask them to and try again for `SPARE_S`. Raises `Denied`."""
        deadline = self.node.now() + SPARE_S
        while True:
            try:
                return await attempt()
            except Short as short:
                for digest, users in short.spare.items():
                    for user in users:
                        self.node.notices.spare(user, digest)
                self.node.bell.ring()
                if not await self.ring_before(deadline):
                    raise Denied(Code.NO_SPACE, str(short)) from short
            except NoRoom as error:
                raise Denied(Code.NO_SPACE, str(error)) from error
