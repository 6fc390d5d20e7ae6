"""What a process of ours sets for itself when it starts: open files, the garbage collector, how it logs."""

from __future__ import annotations

import gc
import logging
import resource
import sys
import time
from typing import Final

FORMAT: Final = "%(asctime)s %(levelname)s %(name)s: %(message)s"
YOUNG: Final = 20_000
"""Objects between two looks at the newest: thousands of requests that are under way are no garbage."""


def raise_file_limit() -> int:
    """Each client and each engine takes an open file: the soft limit becomes the hard one. Returns it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def settle() -> None:
    """What was made until now stays: the collector looks at it no more, and less often at the rest."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG)


def log_to_stderr(level: str) -> None:
    """Lines as `FORMAT` has them. What they do not show is not looked up for each
    (https://docs.python.org/3/howto/logging.html#optimization)."""
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Lines(FORMAT))
    logging.basicConfig(level=level, handlers=[handler])


class Lines(logging.Formatter):
    """What the standard one makes of `FORMAT`; the time of day is spelled once a second."""

    def __init__(self, format_: str) -> None:
        super().__init__(format_)
        self._second = -1
        self._text = ""

    def format(self, record: logging.LogRecord) -> str:
        """As the library writes it."""
        if record.exc_info or record.exc_text or record.stack_info:
            return super().format(record)
        return f"{self.formatTime(record)} {record.levelname} {record.name}: {record.getMessage()}"

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        """As the library writes it: `2026-01-02 03:04:05,678`."""
        second = int(record.created)
        if second != self._second:
            self._second, self._text = second, time.strftime("%Y-%m-%d %H:%M:%S", self.converter(second))
        return f"{self._text},{int(record.msecs):03d}"
