"""One connection of a client to one source, in its own thread: claims runs of blocks and receives them in place."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait

from transfer.errors import PeerViolation, TransferError
from transfer.netloader import wire
from transfer.netloader.identity import Identity, differences
from transfer.netloader.manifest import Manifest
from transfer.netloader.plan import Peer
from transfer.netloader.wire import Ask, Code, Offer, Read, Refused
from transfer.netloader.work import Run, Work
from transfer.transports.channel import Channel
from transfer.transports.deadline import Deadline
from transfer.transports.frame import Header, Kind

OFFER_S = 20.0
FRAME_S = 20.0
"""A source that sends no block in so long is lost; longer than a source waits for a block of its own."""
RUN = 8
"""Blocks in one request."""
DEPTH = 2
"""Requests under way: while one is received, the next is there already."""
CLAIM_S = 1.0
COPIERS = 2
"""Threads that copy what is mapped: one alone does not fill the memory bus."""

Dial = Callable[[Peer, Deadline], Channel]
Adopt = Callable[[Manifest], Work]
"""Takes the first source's manifest for all, and refuses one with other content with PeerViolation."""
Agree = Callable[[Peer, Channel], None]
"""May agree with the source, after its offer, on another way for the bytes. Raises TransferError: connect anew."""


class Denied(TransferError):
    """The source gives nothing, and says why. `passing`: it may later."""

    def __init__(self, code: Code, details: Sequence[str]) -> None:
        super().__init__(f"{code.value}: {'; '.join(details)}" if details else code.value)
        self.code = code
        self.passing = code in (Code.LATER, Code.SWITCHING)


class Pull:
    """`error` tells, once the thread has ended, why; None: there was nothing left to fetch, or it was told to stop."""

    def __init__(
        self,
        peer: Peer,
        identity: Identity,
        addresses: Sequence[int],
        dial: Dial,
        adopt: Adopt,
        ended: Callable[[], None],
        agree: Agree | None = None,
    ) -> None:
        """`addresses`: where each extent belongs in this process. `ended` is called in the thread, last of all."""
        self.peer = peer
        self.error: TransferError | None = None
        self.blocks = 0
        self._identity = identity
        self._addresses = addresses
        self._dial = dial
        self._adopt = adopt
        self._ended = ended
        self._agree = agree
        self._stop = threading.Event()
        self._work: Work | None = None
        self._channel: Channel | None = None
        self._copiers: ThreadPoolExecutor | None = None
        self._thread = threading.Thread(target=self._run, name="vnpu-pull", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def stop(self) -> None:
        """Receive what was asked for, and ask for no more."""
        self._stop.set()
        if self._work is not None:
            self._work.wake()

    def abort(self, timeout_s: float) -> bool:
        """Break off. True: nothing is written any more."""
        self._stop.set()
        if self._channel is not None:
            self._channel.abort()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            with self._dial(self.peer, Deadline.after(OFFER_S)) as channel:
                self._channel = channel
                channel.configure(max_message=wire.MAX_MESSAGE)
                manifest = self._offer(channel)
                self._work = self._adopt(manifest)
                if self._agree is not None:
                    self._agree(self.peer, channel)
                with ThreadPoolExecutor(COPIERS, "vnpu-copy") as self._copiers:
                    self._fetch(channel, manifest, self._work)
        except TransferError as error:
            self.error = error
        finally:
            self._ended()

    def _offer(self, channel: Channel) -> Manifest:
        channel.send(wire.encode(Ask(self._identity)), Deadline.after(OFFER_S))
        _, body = channel.receive(Deadline.after(OFFER_S))
        answer = wire.decode_answer(body)
        if isinstance(answer, Refused):
            raise Denied(answer.code, answer.details)
        if not isinstance(answer, Offer):
            raise PeerViolation(f"{type(answer).__name__} where an offer was due")
        wrong = differences(self._identity, answer.manifest.identity)
        if wrong:
            raise Denied(Code.MISMATCH, wrong)
        answer.manifest.check()
        return answer.manifest

    def _fetch(self, channel: Channel, manifest: Manifest, work: Work) -> None:
        asked: deque[tuple[int, Run]] = deque()
        tag = 0
        try:
            while not work.over:
                while len(asked) < DEPTH and not self._stop.is_set():
                    run = work.claim(0.0 if asked else CLAIM_S)
                    if run is None:
                        break
                    tag = (tag + 1) & 0xFFFF
                    asked.append((tag, run))
                    channel.send(wire.encode(Read(*run)), Deadline.after(FRAME_S), tag=tag)
                if asked:
                    self._receive(channel, manifest, work, *asked[0])
                    asked.popleft()
                elif self._stop.is_set():
                    return
        finally:
            for _, run in reversed(asked):
                work.give_back(run)

    def _receive(self, channel: Channel, manifest: Manifest, work: Work, tag: int, run: Run) -> None:
        copying: list[Future[None]] = []
        try:
            self._receive_run(channel, manifest, work, tag, run, copying)
        finally:
            wait(copying)
            self.blocks += sum(one.exception() is None for one in copying)
        for one in copying:
            one.result()

    def _receive_run(
        self, channel: Channel, manifest: Manifest, work: Work, tag: int, run: Run, copying: list[Future[None]]
    ) -> None:
        """Blocks land in this thread, or in those of `copying`."""

        def copy(header: Header, place: int, address: int, deadline: Deadline) -> None:
            channel.take(header, place, address, deadline)
            work.land(header.position)

        for number in range(run.first, run.first + run.length):
            deadline = Deadline.after(FRAME_S)
            header = channel.head(deadline)
            if header.kind is Kind.MESSAGE:
                _raise_refusal(channel.body(header, deadline))
            block = manifest.grid.block(number)
            if header != Header(header.kind, tag, block.length, number, manifest.sum(number)):
                raise PeerViolation(f"block {number} was due, {header} came", remedy="the source has other content")
            address = self._addresses[block.extent] + block.offset
            if self._copiers is not None and header.kind is Kind.ASIDE and channel.parallel:
                place = channel.place(header, deadline)
                copying.append(self._copiers.submit(copy, header, place, address, deadline))
                continue
            channel.into(header, address, deadline)
            work.land(number)
            self.blocks += 1


def _raise_refusal(body: bytes) -> None:
    answer = wire.decode_answer(body)
    if isinstance(answer, Refused):
        raise Denied(answer.code, answer.details)
    raise PeerViolation(f"{type(answer).__name__} where a block was due")
