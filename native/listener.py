"""A thread of an engine's process that hears what the daemon asks of it, and notices at once when it was restarted."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from native.client import Client
from native.link import DaemonError

log = logging.getLogger(__name__)

WAIT_S = 60.0
PAUSE_S = 0.5


def _nothing(asked: object) -> None:
    pass


class Listener:
    """`let_go(view)` must unmap the view and close it at the daemon; `spare(digest)` may release that master. Each is
    called on a thread of its own, one at a time: a wish may wait for a switch, and who does not let go of a view within
    seconds is killed. What they raise is logged and the daemon goes on waiting.

    Its connection breaks with the daemon: making it anew hands back what the process keeps (`native.kept`), so that a
    restarted daemon need not wait for this process's next call.
    """

    def __init__(
        self, client: Client, let_go: Callable[[int], None] = _nothing, spare: Callable[[str], None] = _nothing
    ) -> None:
        """`client`: of this process; a connection of its own is made beside it."""
        self._client = client.sibling()
        self._let_go = let_go
        self._spare = spare
        self._closed = threading.Event()
        self._wished = threading.Condition()
        self._wishes: dict[str, None] = {}
        self._threads = (
            threading.Thread(target=self._run, name="vnpu-listener", daemon=True),
            threading.Thread(target=self._grant, name="vnpu-spare", daemon=True),
        )

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Returns when nothing is called any more. Idempotent."""
        self._closed.set()
        self._client.close()
        with self._wished:
            self._wished.notify()
        for thread in self._threads:
            if thread.is_alive():
                thread.join()

    def _run(self) -> None:
        last = 0
        while not self._closed.is_set():
            try:
                news = self._client.listen(last, WAIT_S)
            except DaemonError as error:
                if not self._closed.wait(PAUSE_S):
                    log.warning("the daemon is not heard: %s", error)
                continue
            last = news.last
            for view in news.let_go:
                self._do(self._let_go, view)
            with self._wished:
                self._wishes.update(dict.fromkeys(news.spare))
                self._wished.notify()

    def _grant(self) -> None:
        while True:
            with self._wished:
                self._wished.wait_for(lambda: self._wishes or self._closed.is_set())
                if self._closed.is_set():
                    return
                digest = next(iter(self._wishes))
                del self._wishes[digest]
            self._do(self._spare, digest)

    def _do(self, call: Callable[..., None], asked: object) -> None:
        try:
            call(asked)
        except Exception:
            # The thread must go on listening; a view that is not let go of ends this process, which the daemon says.
            log.exception("what the daemon asked for was not done: %s", asked)
