"""What the processes of an engine ask of their node daemon, each verb of `native.protocol` as a call.

Worker processes call it directly, the agent through `asyncio.to_thread`. How calls are carried and tried again is in
`native.link`.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterable, Iterator

import msgspec

from native import protocol
from native.frames import close_all
from native.link import ANSWER_MARGIN, DaemonError, DaemonRefused, Link
from native.protocol import MAX_FDS, Code, Kind

KILL_S = 10.0
"""Seconds the daemon gives a killed process to end, before it answers that it has not."""


class Chunk(msgspec.Struct, frozen=True):
    """A chunk of device memory that was mapped to this process: `fd` (the caller's to close) and `size` in bytes.

    Where the driver shares by handle, `fd` is -1 and `handle` the 64-bit number. `still`: it holds its part of the
    content that was asked for."""

    id: int
    fd: int
    size: int
    handle: int = 0
    still: bool = False

    @property
    def shareable(self) -> int:
        """What `Driver.import_handle` takes."""
        return self.handle if self.fd < 0 else self.fd

    def close(self) -> None:
        """Close the descriptor, where there is one."""
        if self.fd >= 0:
            os.close(self.fd)


class View(msgspec.Struct, frozen=True):
    """Chunks of another process that this one may map read-only, until it is asked to let go. Descriptors are the
    caller's to close."""

    id: int
    chunks: tuple[Chunk, ...]


class Portion(msgspec.Struct, frozen=True):
    """What one `Map` asks for."""

    kind: Kind
    count: int
    kv: int = 0


def portions(kind: Kind, count: int, kv: int) -> Iterator[Portion]:
    """PURE. `count` chunks of `kind` and so many of KV behind them, in as few calls as may be."""
    while count or kv:
        some = min(MAX_FDS, count)
        count -= some
        more = min(MAX_FDS - some, kv) if not count else 0
        kv -= more
        yield Portion(kind, some, more) if some else Portion(Kind.KV, more)


class Client(Link):
    """The daemon's verbs. Made, closed and shared between threads as a `Link`."""

    def enter(self, device: str, epoch: str, revision: int, timeout_s: float) -> protocol.Opened:
        """PROTOCOL rule 6: open the operation of fence (`epoch`, `revision`); waits at most `timeout_s`.

        Raises:
            DaemonRefused: STALE: touch nothing. TIMEOUT: waited; may be asked again under the same fence.
            DaemonUnavailable: the daemon is away or silent.
        """

        def ask(left: float) -> protocol.Request:
            return protocol.Enter(device=device, epoch=epoch, revision=revision, timeout_s=left)

        return self._wait_for(ask, protocol.Opened, timeout_s)

    def leave(
        self,
        device: str,
        epoch: str,
        revision: int,
        timeout_s: float | None = None,
        answer: protocol.Answer | None = None,
    ) -> None:
        """PROTOCOL rule 8: the operation is over, durably. Idempotent. `answer` is what the daemon is to put beside it,
        without any promise.

        Raises:
            DaemonRefused: NOT_OPEN: this fence was never entered, or by another.
            DaemonUnavailable: the daemon is away or silent: leave again.
        """
        request = protocol.Leave(device=device, epoch=epoch, revision=revision, answer=answer)
        self._ask(request, protocol.Done, timeout_s)

    def await_open(self, device: str, timeout_s: float) -> protocol.Opened:
        """Wait until an operation of this engine is open on `device` (start-up admission).

        Raises:
            DaemonRefused: TIMEOUT.
            DaemonUnavailable: the daemon is away or silent.
        """
        return self._wait_for(
            lambda left: protocol.AwaitOpen(device=device, timeout_s=left), protocol.Opened, timeout_s
        )

    def map(
        self,
        device: str,
        kind: Kind,
        count: int,
        timeout_s: float | None = None,
        *,
        share_id: int = 0,
        overwritten: bool = False,
        kv: int = 0,
        content: str = "",
    ) -> tuple[Chunk, ...]:
        """PROTOCOL rule 7: `count` chunks with a descriptor each, all or none. Import and close each. `share_id` is the
        driver's, where it shares by handle. They are zero, unless they are `overwritten` whole before anything reads
        them (weights of a restore): then they may hold what another owner left, and some may hold what the caller left
        (`unmap`) as `content`. With weights, so many more for `kv` behind them, which are zero: in the same call as far
        as they fit into it.

        Raises:
            DaemonRefused: NOT_OPEN, NO_SPACE (grant or capacity), TIMEOUT (still being populated or wiped).
            DaemonUnavailable: the daemon is away or silent.
        """
        deadline = self._deadline(timeout_s) + ANSWER_MARGIN
        chunks: list[Chunk] = []
        try:
            for some in portions(kind, count, kv):
                ticket = secrets.randbits(62) + 1
                request = protocol.Map(device, some.kind, some.count, ticket, 0.0, share_id, kv=some.kv)
                if overwritten and some.kind is kind:
                    request = msgspec.structs.replace(request, overwritten=True, content=content, first=len(chunks))
                chunks += self._map_some(request, deadline)
        except DaemonError:
            for chunk in chunks:
                chunk.close()
            if chunks:
                self.unmap(device, [chunk.id for chunk in chunks])
            raise
        return tuple(chunks)

    def unmap(
        self,
        device: str,
        chunks: Iterable[int],
        timeout_s: float | None = None,
        *,
        content: str = "",
        holding: int = 0,
    ) -> None:
        """These chunks are unmapped here and their descriptors closed; the daemon may give them to others. Idempotent.
        `content`: a name that nobody can guess, of what the first `holding` of them hold in this order; by it `map`
        finds them while nobody else needs them.

        Raises:
            DaemonRefused: NOT_OPEN, or BAD_REQUEST: one belongs to another process.
            DaemonUnavailable: the daemon is away or silent: unmap again.
        """
        ids = tuple(chunks)
        if ids:
            self._ask(protocol.Unmap(device, ids, content, holding), protocol.Done, timeout_s)

    def create_master(self, size: int, timeout_s: float = 120.0) -> tuple[int, int]:
        """A new host master: writable descriptor (the caller's to close) and its size in bytes, `size` rounded up.

        Raises:
            DaemonRefused: NO_SPACE: the node's budget for host memory is spent.
            DaemonUnavailable: the daemon is away or silent.
        """
        return self._descriptor(protocol.CreateMaster(size=size), timeout_s)

    def seal_master(self, digest: str, timeout_s: float | None = None) -> None:
        """Name what the last `create_master` of this client now holds; close the writable descriptor.

        Raises:
            DaemonRefused: NOT_FOUND: there is none (the daemon was restarted meanwhile: create it again).
            DaemonUnavailable: the daemon is away or silent.
        """
        self._ask(protocol.SealMaster(digest=digest), protocol.Done, timeout_s)

    def open_master(self, digest: str, timeout_s: float | None = None) -> tuple[int, int] | None:
        """Read-only descriptor (the caller's to close) and size of the sealed master of `digest`; None: there is none.

        Raises:
            DaemonUnavailable: the daemon is away or silent.
        """
        try:
            return self._descriptor(protocol.OpenMaster(digest=digest), timeout_s)
        except DaemonRefused as refused:
            if refused.code is Code.NOT_FOUND:
                return None
            raise

    def release_master(self, digest: str, timeout_s: float | None = None) -> None:
        """This process has the master of `digest` mapped no more: it may be evicted. Idempotent.

        Raises:
            DaemonUnavailable: the daemon is away or silent.
        """
        self._ask(protocol.ReleaseMaster(digest=digest), protocol.Done, timeout_s)

    def listen(self, after: int, timeout_s: float) -> protocol.News:
        """What the daemon asks of this process beyond `after` (the last answer's `last`); waits at most `timeout_s`.

        Raises:
            DaemonUnavailable: the daemon is away or silent.
        """
        return self._wait_for(
            lambda left: protocol.Listen(after=after, timeout_s=min(left, timeout_s)), protocol.News, timeout_s
        )

    def offer_view(self, device: str, chunks: Iterable[int], to: str = "", timeout_s: float | None = None) -> int:
        """Let processes of the engine `to` (empty: of any engine of this node) map these chunks of this process
        read-only. Returns the id that they open it by.

        Raises:
            DaemonRefused: BAD_REQUEST: a chunk is not this process's.
            DaemonUnavailable: the daemon is away or silent.
        """
        return self._ask(protocol.OfferView(device, tuple(chunks), to), protocol.Offered, timeout_s).view

    def open_view(self, view: int, timeout_s: float | None = None) -> View:
        """Map what comes read-only, close the descriptors; when the `Listener` says so, unmap and `close_view`.

        Raises:
            DaemonRefused: NOT_FOUND: there is no such view for this process (any more).
            DaemonUnavailable: the daemon is away or silent.
        """
        chunks = self._read_only(
            lambda first: protocol.OpenView(view, first), lambda: self.close_view(view), self._deadline(timeout_s)
        )
        return View(view, chunks)

    def offer_share(self, device: str, digest: str, chunks: Iterable[int], timeout_s: float | None = None) -> None:
        """Let other engines of this content map these weight chunks of this process read-only. They are not written to
        any more; unmap them all in one call, and the pages stay with who shares them.

        Raises:
            DaemonRefused: BAD_REQUEST: a chunk is not this process's, or the driver cannot do it.
            DaemonUnavailable: the daemon is away or silent.
        """
        self._ask(protocol.OfferShare(device, digest, tuple(chunks)), protocol.Done, timeout_s)

    def share_wanted(self, device: str, digest: str, timeout_s: float | None = None) -> bool:
        """Whether another engine of this device has that content, so that there is a point in offering it.

        Raises:
            DaemonRefused: NOT_OPEN.
            DaemonUnavailable: the daemon is away or silent.
        """
        try:
            self._ask(protocol.ShareWanted(device, digest), protocol.Done, timeout_s)
        except DaemonRefused as refused:
            if refused.code is Code.NOT_FOUND:
                return False
            raise
        return True

    def open_share(self, device: str, digest: str, timeout_s: float | None = None) -> tuple[Chunk, ...] | None:
        """The chunks of that content, in its order, to be mapped read-only (descriptors are the caller's to close).
        None: nobody offers it on this device. Uncharged, until this process inherits them.

        Raises:
            DaemonRefused: NOT_OPEN.
            DaemonUnavailable: the daemon is away or silent.
        """
        try:
            return self._read_only(
                lambda first: protocol.OpenShare(device, digest, first),
                lambda: self.close_share(device, digest),
                self._deadline(timeout_s),
            )
        except DaemonRefused as refused:
            if refused.code is Code.NOT_FOUND:
                return None
            raise

    def close_share(self, device: str, digest: str, timeout_s: float | None = None) -> None:
        """That content is unmapped here and its descriptors closed. Idempotent.

        Raises:
            DaemonRefused: NOT_OPEN.
            DaemonUnavailable: the daemon is away or silent: close it again.
        """
        self._ask(protocol.CloseShare(device, digest), protocol.Done, timeout_s)

    def close_view(self, view: int, timeout_s: float | None = None) -> None:
        """The view is unmapped here and its descriptors closed. Always allowed, idempotent.

        Raises:
            DaemonUnavailable: the daemon is away or silent: close it again.
        """
        self._ask(protocol.CloseView(view=view), protocol.Done, timeout_s)

    def revoke_view(self, view: int, timeout_s: float) -> None:
        """By the owner: returns when nobody has the view mapped. Who has not let go after `timeout_s` is killed.

        Raises:
            DaemonRefused: TIMEOUT: a killed process has not ended yet; BAD_REQUEST: the view is another's.
            DaemonUnavailable: the daemon is away or silent: revoke it again.
        """
        self._ask(protocol.RevokeView(view, timeout_s), protocol.Done, timeout_s + KILL_S + ANSWER_MARGIN)

    def report_host(self, saved_kv: int, timeout_s: float | None = None) -> None:
        """This process holds `saved_kv` bytes of host memory for saved KV from now on.

        Raises:
            DaemonRefused: NO_SPACE: they do not fit into the node's budget.
            DaemonUnavailable: the daemon is away or silent.
        """
        self._ask(protocol.ReportHost(saved_kv=saved_kv), protocol.Done, timeout_s)

    def stats(self, timeout_s: float | None = None) -> str:
        """What the daemon knows, as JSON text, for people and tests."""
        return self._ask(protocol.Stats(), protocol.Facts, timeout_s).json

    def _map_some(self, wanted: protocol.Map, deadline: float) -> list[Chunk]:
        def ask(left: float) -> protocol.Request:
            return msgspec.structs.replace(wanted, timeout_s=left)

        reply, descriptors = self._call(ask, protocol.Mapped, deadline)
        if sorted((len(descriptors), len(reply.handles))) != [0, len(reply.chunks)]:
            close_all(descriptors)
            came = f"{len(descriptors)} descriptors and {len(reply.handles)} handles"
            raise DaemonError(f"{len(reply.chunks)} chunks came with {came}")
        beside = descriptors or [-1] * len(reply.chunks)
        handles = reply.handles or (0,) * len(reply.chunks)
        still = frozenset(reply.still)
        given = enumerate(zip(reply.chunks, beside, handles, strict=True))
        return [Chunk(id, fd, reply.chunk, handle, place in still) for place, (id, fd, handle) in given]

    def _read_only(
        self, ask: Callable[[int], protocol.Request], close: Callable[[], None], deadline: float
    ) -> tuple[Chunk, ...]:
        """All chunks of a view or share; `ask` says which request brings those from a number on."""
        chunks: list[Chunk] = []
        total = 1
        try:
            while len(chunks) < total:
                request = ask(len(chunks))
                reply, descriptors = self._call(lambda left, request=request: request, protocol.Viewed, deadline)  # type: ignore[misc]
                if len(descriptors) != len(reply.chunks) or not descriptors:
                    close_all(descriptors)
                    raise DaemonError(f"{len(reply.chunks)} chunks came with {len(descriptors)} descriptors")
                chunks += [Chunk(*pair, reply.chunk) for pair in zip(reply.chunks, descriptors, strict=True)]
                total = reply.total
        except DaemonError:
            close_all(chunk.fd for chunk in chunks)
            if chunks:
                close()
            raise
        return tuple(chunks)

    def _descriptor(self, request: protocol.Request, timeout_s: float | None) -> tuple[int, int]:
        reply, descriptors = self._call(lambda left: request, protocol.Master, self._deadline(timeout_s))
        if len(descriptors) != 1:
            close_all(descriptors)
            raise DaemonError(f"a master came with {len(descriptors)} descriptors")
        return descriptors[0], reply.size
