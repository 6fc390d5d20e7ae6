"""Processors that idle stay awake for as long as a token is on its way.

A switch is some forty hops from one process to the next, each a few hundred microseconds of work: in between the
processors fall asleep, and to wake one takes from microseconds (shallow states) over a tenth of a millisecond (deep
ones) to more in a virtual machine, where sleeping means to leave it. Linux lets a process with the right to it say what
latency it can bear (Documentation/power/pm_qos_interface.rst, `/dev/cpu_dma_latency`: a 32-bit number of microseconds,
which holds while the file is open); at 0 idle processors poll. Whoever wants one has it at once, so this takes time
from nobody on this machine, only power, and only for a moment.
"""

from __future__ import annotations

import asyncio
import logging
import os
import struct
from pathlib import Path

log = logging.getLogger(__name__)

DEVICE = Path("/dev/cpu_dma_latency")
HOLD_S = 0.1
"""After the last change of any fence. Longer is only the copy of a large model, which hops nowhere."""
NONE_US = struct.pack("=i", 0)
ANY_US = struct.pack("=i", 2_000_000_000)
"""PM_QOS_CPU_LATENCY_DEFAULT_VALUE (include/linux/pm_qos.h): as if nobody had asked."""


class WakeUps:
    """Of this machine's processors. To be used on one running loop; `close` it."""

    def __init__(self, device: Path = DEVICE) -> None:
        """Where it may not be opened, as in a container without it, all the rest does nothing."""
        self._timer: asyncio.TimerHandle | None = None
        self._file = -1
        try:
            self._file = os.open(device, os.O_WRONLY | os.O_CLOEXEC)
        except OSError as error:
            log.info("idle processors sleep during a switch: %s", error)

    def hasten(self, seconds: float = HOLD_S) -> None:
        """They come without delay for so long from now on."""
        if self._file < 0:
            return
        if self._timer is not None:
            self._timer.cancel()
        else:
            self._say(NONE_US)
        if self._file < 0:
            return
        self._timer = asyncio.get_running_loop().call_later(seconds, self._relax)

    def close(self) -> None:
        """Idempotent; what was asked for is over."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _relax(self) -> None:
        self._timer = None
        self._say(ANY_US)

    def _say(self, microseconds: bytes) -> None:
        try:
            os.write(self._file, microseconds)
        except OSError as error:
            log.warning("idle processors sleep during a switch: %s", error)
            self.close()
