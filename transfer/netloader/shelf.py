"""What an engine serves just now: nothing yet, a source, or nothing any more."""

from __future__ import annotations

import threading

from transfer.netloader.source import Source


class Shelf:
    """Thread-safe. Clients of a starter may come before it knows itself what it will get: they wait here."""

    def __init__(self, source: Source | None = None) -> None:
        self._changed = threading.Condition()
        self._source = source
        self._closed = False

    @property
    def closed(self) -> bool:
        return self._closed

    def put(self, source: Source | None) -> None:
        """From now on this is served, or nothing for a while; connections that are open go on with what they began
        with."""
        with self._changed:
            self._source = source
            self._changed.notify_all()

    def close(self) -> None:
        """Nothing is served any more."""
        with self._changed:
            self._source, self._closed = None, True
            self._changed.notify_all()

    def take(self, timeout_s: float) -> Source | None:
        """What is served, at the latest after so many seconds; None: still nothing, or `closed`."""
        with self._changed:
            self._changed.wait_for(lambda: self._source is not None or self._closed, timeout_s)
            return self._source
