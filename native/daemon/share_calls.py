"""Calls about shared content: but for `OfferShare` the caller's operation on the device is open (PROTOCOL rule 7)."""

from __future__ import annotations

from native import protocol
from native.connections import Answer
from native.daemon.calls import Calls, Denied
from native.daemon.clearing import Stuck
from native.daemon.device import Device
from native.daemon.engines import Member
from native.daemon.shares import NoShare
from native.daemon.views import View
from native.protocol import MAX_FDS, Code, Kind


class ShareCalls(Calls):
    async def handle(self, request: protocol.ShareRequest, member: Member) -> Answer:
        """Raises `Denied`, TimeoutError (the journal)."""
        device = self.device(request.device)
        match request:
            case protocol.ShareWanted():
                if not self.node.view.others(
                    member.holder.engine, f"{self.node.name}/{device.option.id}", request.digest
                ):
                    raise Denied(Code.NOT_FOUND, f"no other engine of {device.option.id} has {request.digest}")
                return Answer(protocol.Done())
            case protocol.OfferShare():
                self._offer(request, device, member)
            case protocol.OpenShare():
                return await self._open(request, device, member)
            case protocol.CloseShare():
                await self._close(request, device, member)
        await self.settled()
        return Answer(protocol.Done())

    def _offer(self, request: protocol.OfferShare, device: Device, member: Member) -> None:
        if device.driver.sharing != "descriptor":
            raise Denied(Code.BAD_REQUEST, f"{device.driver.name} shares chunks by number, which cannot be read-only")
        if len(set(request.chunks)) != len(request.chunks):
            raise Denied(Code.BAD_REQUEST, "a chunk is named twice")
        if not device.pool.holds(member.owner, request.chunks, Kind.WEIGHTS):
            raise Denied(Code.BAD_REQUEST, "only weights that the caller holds can be offered")
        others = [share for share in self.node.shares.of(member.owner) if share.device == device.option.id]
        if any(share.digest != request.digest and set(share.chunks) & set(request.chunks) for share in others):
            raise Denied(Code.BAD_REQUEST, "these chunks are offered under another digest")
        self.node.shares.offer(device.option.id, request.digest, member.owner, request.chunks)

    async def _open(self, request: protocol.OpenShare, device: Device, member: Member) -> Answer:
        before = self.node.shares.get(device.option.id, request.digest)
        had = before is not None and member.owner in before.sharers
        try:
            share = self.node.shares.open(device.option.id, request.digest, member.owner)
        except NoShare as error:
            raise Denied(Code.NOT_FOUND, str(error)) from error

        def unsent() -> None:
            if not had:  # else it has something of an earlier answer
                self._withdraw(device, request.digest, member)

        try:
            await self.settled()
            chunks = share.chunks[request.first : request.first + MAX_FDS]
            if not chunks:
                raise Denied(Code.BAD_REQUEST, f"{request.digest} has no chunk number {request.first}")
            try:
                opened = device.read_only(chunks)
            except (OSError, LookupError) as error:
                raise Denied(Code.NOT_FOUND, f"the chunks cannot be opened: {error}") from error
        except BaseException:
            unsent()
            raise
        reply = protocol.Viewed(device.option.id, chunks, device.pool.chunk, len(share.chunks))
        return Answer(reply, opened.descriptors, unsent=unsent, done=opened.close)

    async def _close(self, request: protocol.CloseShare, device: Device, member: Member) -> None:
        """Who died may have given views of the pages that the caller inherited: as for `Unmap`, they end first."""
        share = self.node.shares.get(device.option.id, request.digest)
        if share is not None and share.owner == member.owner:
            try:
                await self.node.clearing.clear_pages(device.option.id, share.chunks)
            except Stuck as error:
                raise Denied(Code.TIMEOUT, str(error)) from error
        self._let_go(device, request.digest, member)

    def _withdraw(self, device: Device, digest: str, member: Member) -> None:
        """It never got what it opened. Where it has inherited the pages by now, and who died had let others view them,
        those end first, as in `_close`: until then the pages stay charged to it."""

        def views() -> tuple[View, ...]:
            share = self.node.shares.get(device.option.id, digest)
            if share is None or share.owner != member.owner:
                return ()
            return self.node.views.touching(device.option.id, share.chunks)

        def let_go() -> None:
            self._let_go(device, digest, member)
            self.node.settle()

        if any(view.holders for view in views()):
            self.node.clearing.soon(f"pages that {member} inherited", views, let_go)
        else:
            let_go()

    def _let_go(self, device: Device, digest: str, member: Member) -> None:
        """It may have inherited the pages meanwhile: then they go to the next, or are free."""
        share = self.node.shares.get(device.option.id, digest)
        if share is None:
            return
        if share.owner == member.owner:
            rest = self.node.shares.unmapped(device.option.id, device.pool, member.owner, share.chunks)
            device.give_back(member.owner, rest)
        else:
            self.node.shares.close(share, member.owner)
