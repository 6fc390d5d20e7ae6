"""One connection to the daemon: checks who speaks, then does what is asked, each within its deadline.

What a call changed is on disk before the call is answered. `leave` is answered then, without waiting for etcd: what
keeps the next holder out is the daemon's own `closed` (PROTOCOL rule 6), and what lets the leader go on is the device
key (rule 3), which is put at the same time. Waiting for that put would cost each switch a round trip and would tie an
engine's operation to an etcd that is away, where rule 14 says that an entered operation ends.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from native import protocol
from native._native import DriverError
from native.connections import Answer
from native.daemon.calls import Calls, Denied
from native.daemon.clearing import Stuck
from native.daemon.device import Device
from native.daemon.engines import Member, Unwelcome
from native.daemon.host_calls import HostCalls
from native.daemon.share_calls import ShareCalls
from native.daemon.shares import OnlyPart
from native.daemon.view_calls import ViewCalls
from native.fences import Accept, Holder, Open, Refuse
from native.pool import NotYours, Pending, Shortage, Soiled
from native.processes import Process
from native.protocol import MAX_FDS, Code, Kind, Refused

if TYPE_CHECKING:
    from native.daemon.node import Node


class EngineSession(Calls):
    """A connection of one process of one engine; `Session` of native.connections."""

    def __init__(self, node: Node, process: Process) -> None:
        super().__init__(node)
        self._host = HostCalls(node)
        self._views = ViewCalls(node)
        self._shares = ShareCalls(node)
        self._process = process
        self._member: Member | None = None
        self._role = ""

    async def handle(self, request: protocol.Request, beside: Sequence[int] = ()) -> Answer:
        began = self.node.now()
        try:
            return await self._dispatch(request, beside)
        except Denied as denied:
            return Answer(Refused(denied.code, str(denied)), last=denied.code is Code.FORBIDDEN)
        except TimeoutError:
            return Answer(Refused(Code.FAILED, "the ledger could not be written in time; see the daemon's log"))
        finally:
            self._took(request, self.node.now() - began)

    def _took(self, request: protocol.Request, seconds: float) -> None:
        """Waiting and refusals included; the steps of an operation are counted of the device as well."""
        name = type(request).__name__
        self.node.counters.took(name, seconds)
        if not isinstance(request, protocol.Enter | protocol.Leave | protocol.Map | protocol.Unmap):
            return
        device = self.node.devices.get(request.device.removeprefix(f"{self.node.name}/"))
        if device is not None:
            device.counters.took(name.lower(), seconds, _chunks(request) * device.pool.chunk)

    def closed(self) -> None:
        """The process may live on and come back; only what nobody else can use goes."""
        self._host.closed()
        if self._member is None:
            self._process.close()

    async def _dispatch(self, request: protocol.Request, beside: Sequence[int]) -> Answer:
        match request:
            case protocol.Hello():
                return await self._hello(request)
            case protocol.Stats():
                return Answer(protocol.Facts(self.node.facts()))
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
            case protocol.HandBackChunks():
                return await self._take_back(request, beside)
            case protocol.Listen():
                return await self._listen(request)
            case protocol.HandBackMaster():  # whatever its role: it is the process that holds
                return await self._host.handle(request, self._caller(), beside)
            case protocol.OfferView() | protocol.OpenView() | protocol.CloseView() | protocol.RevokeView():
                return await self._views.handle(request, self._caller("worker"))
            case protocol.OfferShare():  # at any time: nothing is mapped or unmapped by it
                return await self._shares.handle(request, self._caller("worker"))
            case protocol.OpenShare() | protocol.CloseShare() | protocol.ShareWanted():
                member = self._caller("worker")
                self._open(self.device(request.device))
                return await self._shares.handle(request, member)
            case _:
                return await self._host.handle(request, self._caller("worker"), beside)

    async def _hello(self, request: protocol.Hello) -> Answer:
        """The claimed engine must have this nonce in its spec key; a process that was welcome before needs no etcd."""
        if self._member is not None:
            raise Denied(Code.FORBIDDEN, "hello was said already")
        holder = Holder(request.engine, request.nonce)
        engines = self.node.engines
        if holder in engines.doomed:
            raise Denied(Code.FORBIDDEN, f"{holder} is ended: a process of it died or was killed")
        if engines.known(self._process, holder) is None:
            await self.until(lambda: self.node.view.holder(request.engine) == holder, self.node.hello_timeout)
            if self.node.view.holder(request.engine) != holder:
                raise Denied(Code.FORBIDDEN, f"{holder} is not what the spec key of this engine says")
        try:
            self._member = engines.welcome(self._process, holder, request.role, request.rank)
        except Unwelcome as error:
            raise Denied(Code.FORBIDDEN, str(error)) from error
        self._role = request.role
        self.node.settle()
        await self.durable()
        chunks = {name: device.pool.chunk for name, device in self.node.devices.items()}
        return Answer(protocol.Welcome(self.node.version, chunks, self.node.generation))

    async def _enter(self, request: protocol.Enter) -> Answer:
        device = self.device(request.device)
        deadline = self.node.now() + request.timeout_s
        while True:
            holder = self._caller("agent").holder
            verdict = device.fences.enter(holder, request.epoch, request.revision, self.node.now())
            if isinstance(verdict, Accept):
                return await self._entered(device, verdict.open)
            if isinstance(verdict, Refuse):
                raise Denied(verdict.code, verdict.why)
            if not await self.ring_before(deadline):
                raise Denied(Code.TIMEOUT, f"waited {request.timeout_s:g} s: {verdict.why}")

    async def _entered(self, device: Device, opened: Open) -> Answer:
        self.node.settle()
        try:
            await self.durable()
        except TimeoutError:
            # The caller will touch nothing and not leave: what it was never told of must not stay open.
            device.fences.withdraw(opened)
            self.node.settle()
            raise
        return Answer(_opened(device.fences.record.epoch, opened))

    async def _leave(self, request: protocol.Leave) -> Answer:
        holder = self._caller("agent").holder
        refused = self.device(request.device).fences.leave(holder, request.epoch, request.revision)
        if refused is not None:
            raise Denied(refused.code, refused.why)
        if request.answer is not None:
            self.node.answers.take(holder, request.answer)
        self.node.settle()
        await self.durable()
        return Answer(protocol.Done())

    async def _await_open(self, request: protocol.AwaitOpen) -> Answer:
        holder, device = self._caller().holder, self.device(request.device)
        deadline = self.node.now() + request.timeout_s
        while True:
            opened = device.fences.opened(holder)
            if isinstance(opened, Refuse):
                if not await self.ring_before(deadline):
                    raise Denied(Code.TIMEOUT, f"waited {request.timeout_s:g} s: {opened.why}")
                continue
            await self.durable()
            # Meanwhile it may have been left, or withdrawn because the disk did not take it.
            if device.fences.opened(holder) == opened:
                return Answer(_opened(device.fences.record.epoch, opened))

    async def _map(self, request: protocol.Map) -> Answer:
        owner, device = self._caller("worker").owner, self.device(request.device)
        if request.overwritten and request.kind is not Kind.WEIGHTS:
            raise Denied(Code.BAD_REQUEST, "only weights are overwritten whole: leave `overwritten` away")
        if request.kv and (request.kind is not Kind.WEIGHTS or request.count + request.kv > MAX_FDS):
            raise Denied(Code.BAD_REQUEST, f"`kv` goes with weights, at most {MAX_FDS} chunks in all")
        if request.content and not request.overwritten:
            raise Denied(Code.BAD_REQUEST, "what remains of a content is given to who overwrites the rest: say so")
        deadline = self.node.now() + request.timeout_s
        while True:
            grant = self._open(device).bytes
            try:
                found = device.pool.find(request.content, request.first, request.count)
                chunks = device.pool.take(
                    owner,
                    request.kind,
                    request.count,
                    request.ticket,
                    grant,
                    overwritten=request.overwritten,
                    kv=request.kv,
                    found=found,
                )
                break
            except Shortage as error:
                raise Denied(Code.NO_SPACE, str(error)) from error
            except Pending as error:
                if isinstance(error, Soiled):
                    device.wiper.ask(request.kv if request.overwritten else request.count + request.kv)
                if not await self.ring_before(deadline):
                    raise Denied(Code.TIMEOUT, str(error)) from error

        def undo() -> None:
            # Where the owner died meanwhile, its chunks may be another's by now.
            with contextlib.suppress(NotYours):
                device.give_back(owner, chunks)
            self.node.settle()

        self.node.settle()
        try:
            await self.durable()
            handles = await device.permit(chunks, request.share_id)
        except DriverError as error:
            undo()
            raise Denied(Code.FAILED, str(error)) from error
        except BaseException:
            undo()
            raise
        mapped = protocol.Mapped(chunks, device.pool.chunk, handles, tuple(sorted(found.chunks)))
        return Answer(mapped, () if handles else device.descriptors(chunks), unsent=undo)

    async def _unmap(self, request: protocol.Unmap) -> Answer:
        owner, device = self._caller("worker").owner, self.device(request.device)
        self._open(device)
        try:
            self.node.shares.whole(device.option.id, owner, request.chunks)
            mine = [chunk for chunk in request.chunks if device.pool.owner_of(chunk) == owner]
            await self.node.clearing.clear_pages(device.option.id, mine)
            self._open(device)
            rest = self.node.shares.unmapped(device.option.id, device.pool, owner, request.chunks)
            holding = request.holding if rest[: request.holding] == request.chunks[: request.holding] else 0
            device.give_back(owner, rest, request.content, holding)
        except Stuck as error:
            raise Denied(Code.TIMEOUT, str(error)) from error
        except (NotYours, OnlyPart) as error:
            raise Denied(Code.BAD_REQUEST, str(error)) from error
        await self.settled()
        return Answer(protocol.Done())

    async def _take_back(self, request: protocol.HandBackChunks, beside: Sequence[int]) -> Answer:
        owner, device = self._caller().owner, self.device(request.device)
        if len(beside) != len(request.chunks):
            raise Denied(Code.BAD_REQUEST, f"{len(request.chunks)} chunks came with {len(beside)} descriptors")
        try:
            device.take_back(owner, dict(zip(request.chunks, beside, strict=True)))
        except (NotYours, OSError) as error:
            raise Denied(Code.BAD_REQUEST, str(error)) from error
        await self.settled()
        return Answer(protocol.Done())

    async def _listen(self, request: protocol.Listen) -> Answer:
        member, deadline = self._caller(), self.node.now() + request.timeout_s
        while (news := self.node.notices.news(member.number, request.after)) is None:
            if not await self.ring_before(deadline):
                return Answer(protocol.News(request.after))
        return Answer(news)

    def _caller(self, role: str = "") -> Member:
        if self._member is None:
            raise Denied(Code.FORBIDDEN, "the first request is hello")
        if self._member.holder in self.node.engines.doomed:
            raise Denied(Code.FORBIDDEN, f"{self._member.holder} is being ended")
        if role and role != self._role:
            raise Denied(Code.FORBIDDEN, f"this needs the role {role}, hello said {self._role}")
        return self._member

    def _open(self, device: Device) -> Open:
        opened = device.fences.opened(self._caller().holder)
        if isinstance(opened, Refuse):
            raise Denied(opened.code, opened.why)
        return opened


def _chunks(request: protocol.Enter | protocol.Leave | protocol.Map | protocol.Unmap) -> int:
    match request:
        case protocol.Map():
            return request.count + request.kv
        case protocol.Unmap():
            return len(request.chunks)
        case _:
            return 0


def _opened(epoch: str, opened: Open) -> protocol.Opened:
    return protocol.Opened(epoch, opened.revision, opened.order, opened.bytes)
