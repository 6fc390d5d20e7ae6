"""How long a process of an engine spins for its next message before it sleeps.

vLLM's shared-memory queue (vllm/distributed/device_communicators/shm_broadcast.py, 0.32.0) lets a reader spin for a
second after each message. A worker whose model has just left the device would take a whole core from the one that
comes, which on a shared host is the difference between a wake of 0.2 s and one of 1.1 s.

While an engine's memory comes or goes its readers do not spin at all (`rest`): they wait for messages that take
milliseconds to come, and those who must work for that, the node daemon first of all, want the core. Nor do they while
its steps compute nothing (`lull`): each of these waits for transfers, of which others do the work.
"""

from __future__ import annotations

import functools
import time
from typing import Any

SPIN_S = 0.02
"""Covers the pause between two steps of a busy engine. Not under 3 ms: ZeroMQ may drop a wake-up that soon after
another (max_command_delay), and only a reader that still looks does not miss it."""
LOOK_MS = 1
"""Who rests looks so often, for as long as it would spin."""
SETTLE_S = 0.2
"""After a restore, until the first forward pass is through: it shares the cores with the copy."""

_rests_until = 0.0
_lull = False


def rest() -> None:
    """Readers of this process do not spin until `work`."""
    global _rests_until
    _rests_until = float("inf")


def work(after_s: float = 0.0) -> None:
    """They spin again, `after_s` seconds from now. Without a `rest` before, nothing changes."""
    global _rests_until
    if _rests_until == float("inf"):
        _rests_until = time.monotonic() + after_s


def lull(idle: bool) -> None:
    """Readers of this process do not spin either while the engine's last step was `idle`."""
    global _lull
    _lull = idle


def spin_briefly() -> None:
    """From now on readers in this process sleep after `SPIN_S` seconds without a message. Idempotent."""
    from vllm.distributed.device_communicators.shm_broadcast import SpinCondition

    make, wait = SpinCondition.__init__, SpinCondition.wait
    if hasattr(make, "__wrapped__"):
        return

    @functools.wraps(make)
    def briefly(*args: object, **kwargs: object) -> None:
        make(*args, **{"busy_loop_s": SPIN_S, **kwargs})

    @functools.wraps(wait)
    def wait_or_rest(self: Any, timeout_ms: int | None = None) -> None:
        now = time.monotonic()
        rests = _lull or now < _rests_until
        if not rests or now > self.last_read + self.busy_loop_s:
            wait(self, timeout_ms)
            return
        spin_s, self.busy_loop_s = self.busy_loop_s, -1.0
        try:
            wait(self, LOOK_MS if timeout_ms is None else min(LOOK_MS, timeout_ms))
        finally:
            self.busy_loop_s = spin_s

    SpinCondition.__init__, SpinCondition.wait = briefly, wait_or_rest
