"""What this process has mapped of other processes' memory, through the node daemon, while it fetches."""

from __future__ import annotations

import logging
import os
import threading
from collections import Counter
from collections.abc import Callable

from native.client import Client
from native.link import DaemonError
from transfer.errors import TransferError
from transfer.netloader.wire import Lent
from transfer.transports.window import Window

log = logging.getLogger("vllm.vnpu.netloader")

CALL_S = 10.0


class Borrower:
    """Thread-safe. `let_go` is what the daemon's `Listener` calls."""

    def __init__(self, client: Client) -> None:
        """`client`: of this process. A connection of its own is made beside it: a call that waits must not keep a view
        from being closed."""
        self._client = client.sibling()
        self._turn = threading.RLock()
        self._views: dict[int, Window] = {}
        self._masters: Counter[str] = Counter()

    def open(self, lent: Lent) -> Window:
        """Map it; it is told to the daemon when the window is closed.

        Raises:
            TransferError: the daemon of this node does not have it, or it cannot be mapped.
        """
        with self._turn:
            try:
                return self._open_view(lent.view) if lent.view else self._open_master(lent.master)
            except DaemonError as error:
                raise TransferError(f"what was lent cannot be mapped: {error}") from error

    def let_go(self, view: int) -> None:
        """The owner wants its pages back. Returns when nobody here reads them any more."""
        with self._turn:
            window = self._views.get(view)
        if window is not None:
            window.close()

    def _open_view(self, view: int) -> Window:
        if view in self._views:
            raise TransferError(f"view {view} is mapped already")
        found = self._client.open_view(view, CALL_S)
        try:
            if any(chunk.fd < 0 for chunk in found.chunks):
                raise TransferError("this driver shares pages by handle, which only its device can map")
            window = Window([(chunk.fd, chunk.size) for chunk in found.chunks], lambda: self._close_view(view))
        except BaseException:
            self._close_view(view)
            raise
        finally:
            for chunk in found.chunks:
                chunk.close()
        self._views[view] = window
        return window

    def _open_master(self, digest: str) -> Window:
        found = self._client.open_master(digest, CALL_S)
        if found is None:
            raise TransferError(f"the daemon has no master {digest}")
        descriptor, size = found
        self._masters[digest] += 1
        try:
            return Window([(descriptor, size)], lambda: self._close_master(digest))
        except BaseException:
            self._close_master(digest)
            raise
        finally:
            os.close(descriptor)

    def _close_view(self, view: int) -> None:
        with self._turn:
            self._views.pop(view, None)
            self._tell(lambda: self._client.close_view(view, CALL_S))

    def _close_master(self, digest: str) -> None:
        with self._turn:  # else the last one's release could overtake the next one's opening
            self._masters[digest] -= 1
            if not self._masters[digest]:
                self._tell(lambda: self._client.release_master(digest, CALL_S))

    def _tell(self, call: Callable[[], None]) -> None:
        try:
            call()
        except DaemonError as error:  # it will see that the process has ended; until then the pages stay
            log.warning("the daemon cannot be told what is not mapped any more: %s", error)
