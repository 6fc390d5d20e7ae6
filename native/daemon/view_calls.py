"""Calls about views: offered and revoked by the owner of the pages, opened and closed by who maps them read-only."""

from __future__ import annotations

from collections.abc import Callable

from native import protocol
from native.connections import Answer
from native.daemon.calls import Calls, Denied
from native.daemon.clearing import Stuck
from native.daemon.engines import Member
from native.daemon.views import NoView, View
from native.protocol import MAX_FDS, Code


class ViewCalls(Calls):
    async def handle(self, request: protocol.ViewRequest, member: Member) -> Answer:
        """Raises `Denied`, TimeoutError (the journal)."""
        match request:
            case protocol.OfferView():
                return self._offer(request, member)
            case protocol.OpenView():
                return await self._open(request, member)
            case protocol.CloseView():
                self.node.views.close(request.view, member.number)
                await self.settled()
            case protocol.RevokeView():
                await self._revoke(request, member)
        return Answer(protocol.Done())

    def _offer(self, request: protocol.OfferView, member: Member) -> Answer:
        device = self.device(request.device)
        if not device.pool.holds(member.owner, request.chunks):
            raise Denied(Code.BAD_REQUEST, "only chunks that the caller holds can be offered")
        return Answer(
            protocol.Offered(self.node.views.offer(device.option.id, member.number, request.chunks, request.to).id)
        )

    async def _open(self, request: protocol.OpenView, member: Member) -> Answer:
        before = self.node.views.get(request.view)
        had = before is not None and member.number in before.holders
        try:
            view = self.node.views.open(request.view, member.number, member.holder.engine)
        except NoView as error:
            raise Denied(Code.NOT_FOUND, str(error)) from error

        def unsent() -> None:
            if not had:  # else it has something of an earlier answer
                self.node.views.close(view.id, member.number)
                self.node.settle()

        try:
            await self.settled()
            return self._part(view, request.first, unsent)
        except BaseException:
            unsent()
            raise

    def _part(self, view: View, first: int, unsent: Callable[[], None]) -> Answer:
        device = self.node.devices[view.device]
        chunks = view.chunks[first : first + MAX_FDS]
        if view.revoked or not chunks:
            raise Denied(Code.NOT_FOUND, f"view {view.id} was revoked, or has no chunk number {first}")
        try:
            opened = device.read_only(chunks)
        except (OSError, LookupError) as error:
            raise Denied(Code.FAILED, f"the chunks cannot be opened: {error}") from error
        reply = protocol.Viewed(view.device, chunks, device.pool.chunk, len(view.chunks))
        return Answer(reply, opened.descriptors, unsent=unsent, done=opened.close)

    async def _revoke(self, request: protocol.RevokeView, member: Member) -> None:
        view = self.node.views.get(request.view)
        if view is None:
            return
        if view.owner != member.number:
            raise Denied(Code.BAD_REQUEST, f"view {request.view} is another process's")
        try:
            await self.node.clearing.clear((view,), request.timeout_s)
        except Stuck as error:
            raise Denied(Code.TIMEOUT, str(error)) from error
        await self.settled()
