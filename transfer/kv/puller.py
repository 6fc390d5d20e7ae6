"""A decode rank's `Sink` on real threads: one loop owns it, a prefill rank has a thread for words and some for bytes.

So a prefill rank that hangs holds up nobody else, the placing of one layer hides behind the pull of the next, and the
model's thread only puts an event into a queue.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import NamedTuple

from transfer.errors import TransferError
from transfer.kv.boxes import boxes
from transfer.kv.copies import Copies
from transfer.kv.layout import KvLayout
from transfer.kv.messages import Answer, Say, Terms
from transfer.kv.reader import Reader, Span
from transfer.kv.sink import Action, Cancel, Fetch, Finished, Send, Sink, Wanted
from transfer.transports.deadline import Deadline

log = logging.getLogger("vllm.vnpu.transfer")

READ_S = 30.0
"""A layer from one prefill rank takes no longer, or its leg has failed."""


@dataclass(frozen=True)
class Peer:
    """A prefill rank. `handles`: what it calls its layers, by the layers of *this* decode rank. So many layers come at
    once as there are `readers`. They and `ask` are used by one thread each, so they need connections of their own;
    `close` is called once, at the end."""

    layout: KvLayout
    handles: Mapping[int, int]
    readers: Sequence[Reader]
    ask: Callable[[Say, Deadline], Answer]
    close: Callable[[], None]


class Blocks(NamedTuple):
    """Block ids of a request on either side, in its order."""

    src: Sequence[int]
    dst: Sequence[int]


@dataclass
class _Lane:
    """A reader, and the request that it is at."""

    reader: Reader
    reading: str = ""


class _Line:
    """A peer's threads, and what they are at."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.lanes = [_Lane(reader) for reader in peer.readers]
        self.words = ThreadPoolExecutor(1, "vnpu-kv-words")
        self.bytes = ThreadPoolExecutor(len(self.lanes), "vnpu-kv-bytes")
        self.lock = threading.Lock()
        self.planning = threading.Lock()
        self.saying: set[Say] = set()
        self.cancelled: set[str] = set()
        self._idle = list(self.lanes)

    @contextmanager
    def lane(self, request: str) -> Iterator[_Lane]:
        """One that nobody uses: there are as many threads."""
        with self.lock:
            lane = self._idle.pop()
            lane.reading = request
        try:
            yield lane
        finally:
            with self.lock:
                lane.reading = ""
                self._idle.append(lane)

    def cancel(self, request: str) -> None:
        """Its reads end soon, those that have not begun at once."""
        with self.lock:
            self.cancelled.add(request)
            for lane in self.lanes:
                if lane.reading == request:
                    lane.reader.abort()


class Puller:
    """A context manager that ends its threads. `finished` hears of each pull's end, from the loop's thread: it must not
    block."""

    def __init__(
        self,
        layout: KvLayout,
        layers: Sequence[Span],
        peers: Mapping[int, Peer],
        finished: Callable[[Finished], None],
        terms: Terms | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`layers`: this rank's cache, a span for each layer, all of `layout`; `peers`: by number (`Wanted.stages`)."""
        self._layout, self._layers = layout, list(layers)
        self._lines = {number: _Line(peer) for number, peer in peers.items()}
        self._finished = finished
        self._terms = terms or Terms()
        self._clock = clock
        self._sink = Sink(self._terms)
        self._blocks: dict[str, Blocks] = {}
        self._copies: dict[tuple[str, int], Copies] = {}
        self._events: queue.SimpleQueue[Callable[[float], list[Action]] | None] = queue.SimpleQueue()
        self._quiet = threading.Condition()
        self._pending = 0
        self._thread = threading.Thread(target=self._loop, name="vnpu-kv-pull", daemon=True)
        self._thread.start()

    def __enter__(self) -> Puller:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def pull(self, wanted: Wanted, blocks: Blocks) -> None:
        """Begin; `finished` follows, whatever happens.

        Raises:
            ValueError: a prefill rank that is needed is not among the peers.
        """
        needed = {stage * wanted.prefill_tp for stage in range(len(wanted.stages))}
        missing = {first + rank for first in needed for rank in range(wanted.prefill_tp)} - self._lines.keys()
        if missing:
            raise ValueError(f"prefill ranks {sorted(missing)} of {wanted.request} are not known here")
        with self._quiet:
            self._pending += 1
        self._events.put(lambda now: self._begin(wanted, blocks, now))

    def abort(self, request: str) -> None:
        """The engine wants its blocks back; `finished` follows soon."""
        self._events.put(lambda now: self._sink.abort(request, now))

    def abort_all(self, timeout_s: float) -> bool:
        """Before sleep: abort everything and wait until nothing can be written any more; whether it came so far."""
        self._events.put(self._sink.abort_all)
        with self._quiet:
            return self._quiet.wait_for(lambda: self._pending == 0, timeout_s)

    def close(self) -> None:
        """Abort everything and end every thread."""
        self.abort_all(READ_S)
        self._events.put(None)
        self._thread.join(READ_S)
        for line in self._lines.values():
            line.bytes.shutdown()  # nothing is read any more, or a read's deadline is over
            line.words.shutdown()  # a last *done* is still said, within patience
            for lane in line.lanes:
                lane.reader.close()
            line.peer.close()

    # ---- the loop

    def _loop(self) -> None:
        while True:
            event = self._next()
            if event is None:
                return
            self._perform(event(self._clock()))

    def _next(self) -> Callable[[float], list[Action]] | None:
        due = self._sink.due
        try:
            return self._events.get(timeout=None if due is None else max(0.0, due - self._clock()))
        except queue.Empty:
            return self._sink.tick

    def _begin(self, wanted: Wanted, blocks: Blocks, now: float) -> list[Action]:
        self._blocks[wanted.request] = blocks
        try:
            return self._sink.begin(wanted, now)
        except ValueError as error:
            everything = tuple(range(len(blocks.dst)))
            return [Finished(wanted.request, (), everything, (str(error),))]

    def _perform(self, actions: list[Action]) -> None:
        for action in actions:
            if isinstance(action, Send):
                self._say(action)
            elif isinstance(action, Fetch):
                self._lines[action.peer].bytes.submit(self._fetch, action)
            elif isinstance(action, Cancel):
                self._lines[action.peer].cancel(action.request)
            else:
                self._end(action)

    def _end(self, verdict: Finished) -> None:
        self._blocks.pop(verdict.request, None)
        for number, line in self._lines.items():
            self._copies.pop((verdict.request, number), None)
            with line.lock:
                line.cancelled.discard(verdict.request)
        if verdict.failed:
            log.warning("kv pull %s: %d blocks to compute here: %s", *_brief(verdict))
        self._finished(verdict)
        with self._quiet:
            self._pending -= 1
            self._quiet.notify_all()

    # ---- words

    def _say(self, send: Send) -> None:
        line = self._lines[send.peer]
        with line.lock:
            if send.say in line.saying:
                return  # a peer that does not answer is not asked twice at once
            line.saying.add(send.say)
        line.words.submit(self._ask, send, line)

    def _ask(self, send: Send, line: _Line) -> None:
        try:
            answer = line.peer.ask(send.say, Deadline.after(self._terms.patience_s))
        except TransferError as error:
            log.info("kv pull %s: prefill rank %d: %s", send.say.request, send.peer, error)
        else:
            self._events.put(lambda now: self._sink.receive(send.peer, answer, now))
        finally:
            with line.lock:
                line.saying.discard(send.say)

    # ---- bytes

    def _fetch(self, fetch: Fetch) -> None:
        """Answers exactly once, whatever happens: the engine's blocks hang on it."""
        line = self._lines[fetch.peer]
        moved, error = 0, "it was given up"
        try:
            with line.lane(fetch.request) as lane:
                moved = self._read(fetch, line, lane.reader)
            error = ""
        except (TransferError, ValueError) as refused:
            error = str(refused)
        except Exception:
            log.exception("kv pull %s: nobody foresaw this", fetch.request)
            raise
        finally:
            self._events.put(lambda now: self._sink.fetched(fetch.request, fetch.peer, fetch.layer, moved, error, now))

    def _read(self, fetch: Fetch, line: _Line, reader: Reader) -> int:
        return reader.read(
            line.peer.handles[fetch.layer],
            self._copies_of(fetch, line),
            self._layers[fetch.layer],
            Deadline.after(READ_S),
            lambda: fetch.request in line.cancelled,
        )

    def _copies_of(self, fetch: Fetch, line: _Line) -> Copies:
        """The same for each layer; dropped when the pull has ended."""
        key = (fetch.request, fetch.peer)
        with line.planning:
            if key not in self._copies:
                src, dst = self._blocks[fetch.request]
                pulls = (boxes(pull, line.peer.layout, self._layout, src, dst) for pull in fetch.pulls)
                self._copies[key] = Copies(box for made in pulls for box in made)
            return self._copies[key]


def _brief(verdict: Finished) -> tuple[str, int, str]:
    return verdict.request, len(verdict.failed), "; ".join(verdict.reasons)[:300]
