"""One connection to the daemon: checks who speaks, then does what is asked, each within its deadline.

What a call changed is on disk before the call is answered. `leave` is answered then, without waiting for etcd: what
keeps the next holder out is the daemon's own `closed` (PROTOCOL rule 6), and what lets the leader go on is the device
key (rule 3), which is put at the same time. Waiting for that put would cost each switch a round trip and would tie an
engine's operation to an etcd that is away, where rule 14 says that an entered operation ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from native import protocol
from native.connections import Answer
from native.daemon.device import Device
from native.daemon.engines import Member, Unwelcome
from native.daemon.masters import Master, MasterFailed, NoMaster, NoRoom
from native.fences import Accept, Holder, Open, Refuse
from native.pool import NotYours, Pending, Shortage
from native.processes import Process
from native.protocol import Code, Refused

if TYPE_CHECKING:
    from native.daemon.node import Node

PERSIST_TIMEOUT = 20.0


class Denied(Exception):
    """The request is answered with `Refused`."""

    def __init__(self, code: Code, why: str) -> None:
        super().__init__(why)
        self.code = code


class EngineSession:
    """A connection of one process of one engine; `Session` of native.connections."""

    def __init__(self, node: Node, process: Process) -> None:
        self._node = node
        self._process = process
        self._member: Member | None = None
        self._role = ""
        self._master: Master | None = None

    async def handle(self, request: protocol.Request) -> Answer:
        try:
            return await self._dispatch(request)
        except Denied as denied:
            return Answer(Refused(denied.code, str(denied)), last=denied.code is Code.FORBIDDEN)
        except TimeoutError:
            return Answer(Refused(Code.FAILED, "the ledger could not be written in time; see the daemon's log"))

    def closed(self) -> None:
        """The process may live on and come back; only what nobody else can use goes."""
        if self._master is not None:
            self._node.masters.drop(self._master)
            self._node.settle()
        if self._member is None:
            self._process.close()

    async def _dispatch(self, request: protocol.Request) -> Answer:
        match request:
            case protocol.Hello():
                return await self._hello(request)
            case protocol.Stats():
                return Answer(protocol.Facts(self._node.facts()))
            case protocol.Enter():
                return await self._enter(request)
            case protocol.Leave():
                return await self._leave(request)
            case protocol.AwaitOpen():
                return await self._await_open(request)
            case protocol.Map():
                return await self._map(request)
            case protocol.Unmap():
                return await self._unmap(request)
            case protocol.CreateMaster():
                return await self._create_master(request)
            case protocol.SealMaster():
                return self._seal_master(request)
            case protocol.OpenMaster():
                return self._open_master(request)
            case protocol.ReportHost():
                return self._report_host(request)

    async def _hello(self, request: protocol.Hello) -> Answer:
        """The claimed engine must have this nonce in its spec key; a process that was welcome before needs no etcd."""
        if self._member is not None:
            raise Denied(Code.FORBIDDEN, "hello was said already")
        holder = Holder(request.engine, request.nonce)
        engines = self._node.engines
        if holder in engines.doomed:
            raise Denied(Code.FORBIDDEN, f"{holder} is ended: a process of it died or was killed")
        if engines.known(self._process, holder) is None:
            await self._until(lambda: self._node.view.holder(request.engine) == holder, self._node.hello_timeout)
            if self._node.view.holder(request.engine) != holder:
                raise Denied(Code.FORBIDDEN, f"{holder} is not what the spec key of this engine says")
        try:
            self._member = engines.welcome(self._process, holder, request.role, request.rank)
        except Unwelcome as error:
            raise Denied(Code.FORBIDDEN, str(error)) from error
        self._role = request.role
        self._node.settle()
        await self._durable()
        chunks = {name: device.pool.chunk for name, device in self._node.devices.items()}
        return Answer(protocol.Welcome(self._node.version, chunks))

    async def _enter(self, request: protocol.Enter) -> Answer:
        device = self._device(request.device)
        deadline = self._node.now() + request.timeout_s
        while True:
            holder = self._caller("agent").holder
            verdict = device.fences.enter(holder, request.epoch, request.revision, self._node.now())
            if isinstance(verdict, Accept):
                return await self._entered(device, verdict.open)
            if isinstance(verdict, Refuse):
                raise Denied(verdict.code, verdict.why)
            if not await self._ring_before(deadline):
                raise Denied(Code.TIMEOUT, f"waited {request.timeout_s:g} s: {verdict.why}")

    async def _entered(self, device: Device, opened: Open) -> Answer:
        self._node.settle()
        try:
            await self._durable()
        except TimeoutError:
            # The caller will touch nothing and not leave: what it was never told of must not stay open.
            device.fences.withdraw(opened)
            self._node.settle()
            raise
        return Answer(_opened(device.fences.record.epoch, opened))

    async def _leave(self, request: protocol.Leave) -> Answer:
        refused = self._device(request.device).fences.leave(
            self._caller("agent").holder, request.epoch, request.revision
        )
        if refused is not None:
            raise Denied(refused.code, refused.why)
        self._node.settle()
        await self._durable()
        return Answer(protocol.Done())

    async def _await_open(self, request: protocol.AwaitOpen) -> Answer:
        holder, device = self._caller().holder, self._device(request.device)
        await self._until(lambda: isinstance(device.fences.opened(holder), Open), request.timeout_s)
        opened = device.fences.opened(holder)
        if isinstance(opened, Refuse):
            raise Denied(Code.TIMEOUT, f"waited {request.timeout_s:g} s: {opened.why}")
        await self._durable()
        return Answer(_opened(device.fences.record.epoch, opened))

    async def _map(self, request: protocol.Map) -> Answer:
        owner, device = self._caller("worker").owner, self._device(request.device)
        deadline = self._node.now() + request.timeout_s
        while True:
            grant = self._open(device).bytes
            try:
                chunks = device.pool.take(owner, request.kind, request.count, request.ticket, grant)
                break
            except Shortage as error:
                raise Denied(Code.NO_SPACE, str(error)) from error
            except Pending as error:
                if not await self._ring_before(deadline):
                    raise Denied(Code.TIMEOUT, str(error)) from error

        def undo() -> None:
            # Where the owner died meanwhile, its chunks may be another's by now.
            with contextlib.suppress(NotYours):
                device.give_back(owner, chunks)
            self._node.settle()

        self._node.settle()
        try:
            await self._durable()
        except BaseException:
            undo()
            raise
        return Answer(protocol.Mapped(chunks, device.pool.chunk), device.descriptors(chunks), unsent=undo)

    async def _unmap(self, request: protocol.Unmap) -> Answer:
        owner, device = self._caller("worker").owner, self._device(request.device)
        self._open(device)
        try:
            device.give_back(owner, request.chunks)
        except NotYours as error:
            raise Denied(Code.BAD_REQUEST, str(error)) from error
        self._node.settle()
        await self._durable()
        return Answer(protocol.Done())

    async def _create_master(self, request: protocol.CreateMaster) -> Answer:
        member = self._caller("worker")
        if self._master is not None:
            self._node.masters.drop(self._master)
            self._master = None
        try:
            master = await self._node.masters.create(request.size, member.number)
        except NoRoom as error:
            raise Denied(Code.NO_SPACE, str(error)) from error
        except MasterFailed as error:
            raise Denied(Code.FAILED, str(error)) from error
        self._master = master
        self._node.settle()
        return Answer(protocol.Master(master.size), (master.descriptor,))

    def _seal_master(self, request: protocol.SealMaster) -> Answer:
        self._caller("worker")
        master, self._master = self._master, None
        if master is None:
            raise Denied(Code.NOT_FOUND, "no master was created on this connection")
        self._node.masters.seal(master, request.digest)
        self._node.settle()
        return Answer(protocol.Done())

    def _open_master(self, request: protocol.OpenMaster) -> Answer:
        member = self._caller("worker")
        try:
            descriptor, size = self._node.masters.open(request.digest, member.number)
        except NoMaster as error:
            raise Denied(Code.NOT_FOUND, str(error)) from error
        except OSError as error:
            raise Denied(Code.FAILED, f"the master cannot be opened: {error}") from error
        return Answer(protocol.Master(size), (descriptor,), done=lambda: os.close(descriptor))

    def _report_host(self, request: protocol.ReportHost) -> Answer:
        try:
            self._node.masters.report(self._caller("worker").number, request.saved_kv)
        except NoRoom as error:
            raise Denied(Code.NO_SPACE, str(error)) from error
        self._node.settle()
        return Answer(protocol.Done())

    def _caller(self, role: str = "") -> Member:
        if self._member is None:
            raise Denied(Code.FORBIDDEN, "the first request is hello")
        if self._member.holder in self._node.engines.doomed:
            raise Denied(Code.FORBIDDEN, f"{self._member.holder} is being ended")
        if role and role != self._role:
            raise Denied(Code.FORBIDDEN, f"this needs the role {role}, hello said {self._role}")
        return self._member

    def _device(self, name: str) -> Device:
        """By its id on this node, or by `<node>/<id>` as etcd has it."""
        device = self._node.devices.get(name.removeprefix(f"{self._node.name}/"))
        if device is None:
            raise Denied(Code.NOT_FOUND, f"this node has no device {name}, it has {', '.join(self._node.devices)}")
        return device

    def _open(self, device: Device) -> Open:
        opened = device.fences.opened(self._caller().holder)
        if isinstance(opened, Refuse):
            raise Denied(opened.code, opened.why)
        return opened

    async def _durable(self) -> None:
        async with asyncio.timeout(PERSIST_TIMEOUT):
            await self._node.keeper.durable()

    async def _until(self, holds: Callable[[], bool], timeout_s: float) -> None:
        deadline = self._node.now() + timeout_s
        while not holds() and await self._ring_before(deadline):
            pass

    async def _ring_before(self, deadline: float) -> bool:
        return await _in_time(self._node.bell.wait(), deadline - self._node.now())


async def _in_time(work: Awaitable[None], seconds: float) -> bool:
    try:
        async with asyncio.timeout(max(0.0, seconds)):
            await work
    except TimeoutError:
        return False
    return True


def _opened(epoch: str, opened: Open) -> protocol.Opened:
    return protocol.Opened(epoch, opened.revision, opened.order, opened.bytes)
