"""How long a worker spins for its next message before it sleeps.

vLLM's shared-memory queue (vllm/distributed/device_communicators/shm_broadcast.py, 0.32.0) lets a reader spin for a
second after each message. A worker whose model has just left the device would take a whole core from the one that
comes, which on a shared host is the difference between a wake of 0.2 s and one of 1.1 s.
"""

from __future__ import annotations

import functools

SPIN_S = 0.02
"""Covers the pause between two steps of a busy engine. Not under 3 ms: ZeroMQ may drop a wake-up that soon after
another (max_command_delay), and only a reader that still spins does not miss it."""


def spin_briefly() -> None:
    """From now on readers in this process sleep after `SPIN_S` seconds without a message. Idempotent."""
    from vllm.distributed.device_communicators.shm_broadcast import SpinCondition

    make = SpinCondition.__init__
    if hasattr(make, "__wrapped__"):
        return

    @functools.wraps(make)
    def briefly(*args: object, **kwargs: object) -> None:
        make(*args, **{"busy_loop_s": SPIN_S, **kwargs})

    SpinCondition.__init__ = briefly
