"""One connection of a client to one source, in its own thread."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from transfer.errors import PeerViolation, TransferError
from transfer.netloader import wire
from transfer.netloader.identity import Identity, differences
from transfer.netloader.intake import Denied, Intake
from transfer.netloader.manifest import Manifest
from transfer.netloader.plan import Peer
from transfer.netloader.wire import Ask, Code, Offer, Refused
from transfer.netloader.work import Work
from transfer.transports.channel import Channel
from transfer.transports.deadline import Deadline

OFFER_S = 20.0

Dial = Callable[[Peer, Deadline], Channel]
Adopt = Callable[[Manifest], Work]
"""Takes the first source's manifest for all, and refuses one with other content with PeerViolation."""
Agree = Callable[[Peer, Channel], None]
"""May agree with the source, after its offer, on another way for the bytes. Raises TransferError: connect anew."""


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
                manifest = offered(channel, self._identity)
                self._work = self._adopt(manifest)
                if self._agree is not None:
                    self._agree(self.peer, channel)
                intake = Intake(channel, manifest, self._addresses, self._work, self._stop)
                try:
                    intake.run()
                finally:
                    self.blocks = intake.blocks
        except TransferError as error:
            self.error = error
        finally:
            self._ended()


def offered(channel: Channel, identity: Identity) -> Manifest:
    """First on a connection: what the source holds of `identity`.

    Raises:
        Denied: something else, or nothing just now.
        TransferError: the connection is of no use.
    """
    channel.send(wire.encode(Ask(identity)), Deadline.after(OFFER_S))
    _, body = channel.receive(Deadline.after(OFFER_S))
    answer = wire.decode_answer(body)
    if isinstance(answer, Refused):
        raise Denied(answer.code, answer.details)
    if not isinstance(answer, Offer):
        raise PeerViolation(f"{type(answer).__name__} where an offer was due")
    wrong = differences(identity, answer.manifest.identity)
    if wrong:
        raise Denied(Code.MISMATCH, wrong)
    answer.manifest.check()
    return answer.manifest
