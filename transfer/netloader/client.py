"""A new engine fetches its weights: chooses sources, mixes them, replaces those that fail, and says why where none is
left. Nothing is ready before every block is there and its sum is right.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence

import msgspec

from transfer.errors import NotTrusted, PeerViolation, TransferError
from transfer.netloader import plan
from transfer.netloader.identity import Identity
from transfer.netloader.intake import RUN, Denied
from transfer.netloader.manifest import Manifest
from transfer.netloader.plan import Peer
from transfer.netloader.pull import Agree, Dial, Pull
from transfer.netloader.work import Work

log = logging.getLogger("vllm.vnpu.netloader")

REFRESH_S = 0.25
"""The directory is looked at so often; what it says may have changed without any thread ending."""
STALL_S = 30.0
"""No block in so long from anybody: disk is faster."""
EMPTY_S = 2.0
"""A directory without a usable source is asked for so long: one that failed for a moment may come back."""
TRIES = 3
"""Broken connections and damaged frames of one source that are put up with."""
REST_S = 0.3
"""Before the same source is asked again."""
ABORT_S = 30.0

Directory = Callable[[], Sequence[Peer]]
Began = Callable[[Manifest, Work], None]
"""Told once, when it is known what will come: from then on this engine can be a source itself."""


class StreamFailed(TransferError):
    """No source is left or time is up; memory holds nothing of use. `reasons` has the last one of each source."""

    def __init__(self, why: str, reasons: dict[str, str]) -> None:
        told = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
        super().__init__(f"{why} [{told}]" if told else why)
        self.reasons = reasons


class Streamed(msgspec.Struct, frozen=True):
    """What came from where: bytes in all, blocks by source, seconds, and what went wrong on the way."""

    manifest: Manifest
    blocks: dict[str, int]
    seconds: float
    reasons: dict[str, str]


class Client:
    """One attempt. `run` blocks its caller; threads of their own receive."""

    def __init__(
        self,
        me: Peer,
        identity: Identity,
        addresses: Sequence[int],
        directory: Directory,
        dial: Dial,
        began: Began | None = None,
        clock: Callable[[], float] = time.monotonic,
        agree: Agree | None = None,
        first_s: float | None = None,
    ) -> None:
        """`addresses`: where each extent of the layout belongs; asked for only after `began`. `directory` gives the
        peers of this fingerprint. `first_s`: how long the first block may take, None: as long as any other."""
        self._me = me
        self._identity = identity
        self._addresses = addresses
        self._directory = directory
        self._dial = dial
        self._began = began
        self._clock = clock
        self._agree = agree
        self._first_s = first_s
        self._lock = threading.Lock()
        self._changed = threading.Event()
        self._manifest: Manifest | None = None
        self._work: Work | None = None
        self._pulls: list[Pull] = []
        self._blocks: dict[str, int] = {}
        self._reasons: dict[str, str] = {}
        self._failures: dict[str, int] = {}
        self._resting: dict[str, float] = {}

    @property
    def sources(self) -> str:
        """Whom it fetches from just now, for people."""
        return ", ".join(sorted(pull.peer.name for pull in list(self._pulls)))

    def run(self, limit_s: float) -> Streamed:
        """Fetch everything.

        Raises:
            StreamFailed: it could not, and why; nothing is written any more then.
        """
        start = self._clock()
        try:
            self._until_done(start + limit_s)
        except BaseException:
            self._end()
            raise
        self._end()
        if self._manifest is None:
            raise StreamFailed("no manifest", self._reasons)
        return Streamed(self._manifest, self._blocks, self._clock() - start, self._reasons)

    def _until_done(self, limit: float) -> None:
        moved, landed, seen = self._clock(), 0, self._clock()
        while self._work is None or not self._work.over:
            self._changed.clear()
            self._reap()
            self._choose()
            now = self._clock()
            if self._work is not None and self._work.landed != landed:
                landed, moved = self._work.landed, now
            seen = now if self._pulls else seen
            if now - seen > EMPTY_S:
                raise StreamFailed("no source is left", self._reasons)
            patience = STALL_S if landed or self._first_s is None else self._first_s
            if now - moved > patience:
                raise StreamFailed(f"nothing came for {patience:g} s", self._reasons)
            if now > limit:
                raise StreamFailed("it takes too long", self._reasons)
            self._changed.wait(REFRESH_S)

    def _choose(self) -> None:
        """Threads for whom the plan names, and none for others."""
        now = self._clock()
        avoid = frozenset(
            {name for name, count in self._failures.items() if count >= TRIES}
            | {name for name, until in self._resting.items() if until > now}
        )
        peers = self._directory()
        wanted = plan.sources(self._me, peers, avoid) or plan.spares(self._me, peers, avoid)[:1]
        names = {peer.name for peer in wanted}
        active = {pull.peer.name for pull in self._pulls}
        for pull in self._pulls:
            # Who is not wanted any more goes once who is wanted is at work.
            if names and pull.peer.name not in names and names & active:
                pull.stop()
        for peer in wanted:
            if peer.name not in active:
                log.info("fetching from %s at %s:%d", peer.name, peer.host, peer.port)
                self._pulls.append(
                    Pull(peer, self._identity, self._addresses, self._dial, self._adopt, self._wake, self._agree)
                )

    def _wake(self) -> None:
        self._changed.set()

    def _reap(self) -> None:
        for pull in [one for one in self._pulls if not one.alive]:
            self._pulls.remove(pull)
            self._count(pull)

    def _count(self, pull: Pull) -> None:
        name = pull.peer.name
        self._credit(pull)
        if pull.error is None:
            return
        self._reasons[name] = str(pull.error)
        self._resting[name] = self._clock() + REST_S
        log.warning("source %s: %s", name, pull.error)
        if isinstance(pull.error, Denied):
            self._failures[name] = self._failures.get(name, 0) + (0 if pull.error.passing else TRIES)
        else:
            self._failures[name] = self._failures.get(name, 0) + (TRIES if isinstance(pull.error, NotTrusted) else 1)

    def _credit(self, pull: Pull) -> None:
        if pull.blocks:
            self._blocks[pull.peer.name] = self._blocks.get(pull.peer.name, 0) + pull.blocks

    def _adopt(self, manifest: Manifest) -> Work:
        with self._lock:
            if self._manifest is None or self._work is None:
                work = Work(manifest.grid.blocks, RUN)
                if self._began is not None:
                    self._began(manifest, work)
                self._manifest, self._work = manifest, work
                self._changed.set()
            elif manifest.digest != self._manifest.digest:
                raise PeerViolation("its content differs from that of the source before it, under one fingerprint")
            return self._work

    def _end(self) -> None:
        """No thread writes any more when this returns."""
        self._reap()  # who ended by itself tells why; who is broken off now does not
        if self._work is not None:
            self._work.end()
        left = [pull for pull in self._pulls if not pull.abort(ABORT_S)]
        for pull in self._pulls:
            self._credit(pull)
        self._pulls = left
        if left:
            raise StreamFailed(f"{len(left)} threads do not end", self._reasons)
