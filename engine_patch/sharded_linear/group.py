"""What the ranks of a group say to one another, each call with a deadline: over gloo, beside vLLM's own groups.

gloo matches collectives of one group by their order alone. So nothing here uses a group of vLLM's, and each series of
layers has a group of its own. A group on which a wait has run out of time is of no use any more: its engine ends.

gloo moves bytes in threads of its own, on the cores that compute, and wakes them for every 64 KiB that come. Those of a
`Line` wait for their turn; those of a `Group`, which a wake waits for, do not.
"""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import distributed

from coordinator.errors import VnpuError

MOST = 64 << 20
"""Bytes of one rank's part of an exchange."""


class OutOfStep(VnpuError):
    """Ranks of a group are not where they should be; the message names layer and rank."""


class Sent:
    """A broadcast under way."""

    def __init__(self, work: Any) -> None:
        self._work = work

    def wait(self, timeout_s: float) -> bool:
        """False: it was not over in time, or a rank is gone."""
        try:
            self._work.wait(datetime.timedelta(seconds=timeout_s))
        except RuntimeError:  # all that gloo raises, and it says no more than that
            return False
        return True


class Line:
    """Broadcasts of one series, in an order that all ranks keep."""

    def __init__(self, ranks: Sequence[int], timeout_s: float) -> None:
        """`ranks` of the world; all of them call this, in the same order."""
        self._ranks = tuple(ranks)
        with in_the_background():
            self._group = _new_group(ranks, timeout_s)

    def send(self, image: torch.Tensor, owner: int) -> Sent:
        """From rank `owner` of the group into everybody's `image` (uint8, flat); returns at once."""
        return Sent(distributed.broadcast(image, src=self._ranks[owner], group=self._group, async_op=True))


class Group:
    """`me` is this process's place among `ranks`, which are ranks of the world."""

    def __init__(self, ranks: Sequence[int], me: int, timeout_s: float) -> None:
        self.ranks = tuple(ranks)
        self.me = me
        self.timeout_s = timeout_s
        self._group = _new_group(ranks, timeout_s)

    @property
    def size(self) -> int:
        return len(self.ranks)

    def line(self) -> Line:
        return Line(self.ranks, self.timeout_s)

    def exchange(self, mine: bytes, what: str) -> list[bytes]:
        """What each rank gives, by place.

        Raises:
            OutOfStep: not all ranks came within the deadline; `what` names what they were to tell.
        """
        try:
            sizes = self._gather(torch.tensor([len(mine)], dtype=torch.int64))
            longest = max(int(size) for size in sizes)
            if longest > MOST:
                raise OutOfStep(f"rank {self.me}: {what} of {longest} bytes", remedy="report this")
            padded = torch.zeros(max(longest, 1), dtype=torch.uint8)
            padded[: len(mine)] = torch.frombuffer(bytearray(mine or b"\0"), dtype=torch.uint8)[: len(mine)]
            parts = self._gather(padded)
        except RuntimeError as error:
            raise OutOfStep(
                f"rank {self.me} waited {self.timeout_s:g} s for the other ranks' {what}: {error}",
                remedy="a rank is gone or busy elsewhere: see the engine's log",
            ) from error
        return [bytes(part[: int(size)].numpy()) for part, size in zip(parts, sizes, strict=True)]

    def _gather(self, mine: torch.Tensor) -> list[torch.Tensor]:
        found = [torch.empty_like(mine) for _ in self.ranks]
        distributed.all_gather(found, mine, group=self._group)
        return found


def _new_group(ranks: Sequence[int], timeout_s: float) -> Any:
    """Only its members call this: pipeline stages make theirs apart from one another."""
    limit = datetime.timedelta(seconds=timeout_s)
    return distributed.new_group(list(ranks), timeout=limit, backend="gloo", use_local_synchronization=True)


@contextlib.contextmanager
def in_the_background() -> Iterator[None]:
    """Threads that this thread makes meanwhile take no core from one that computes: SCHED_BATCH, which threads inherit
    and under which waking up preempts nobody (sched(7)). A policy other than the usual one is left as it is, and so is
    everything where a sandbox forbids the change: slower, and as good."""
    changed = _usual() and _follow(os.SCHED_BATCH)
    try:
        yield
    finally:
        if changed:
            _follow(os.SCHED_OTHER)


def _usual() -> bool:
    try:
        return os.sched_getscheduler(0) == os.SCHED_OTHER
    except OSError:
        return False


def _follow(policy: int) -> bool:
    """This thread, from now on. False: it may not."""
    try:
        os.sched_setscheduler(0, policy, os.sched_param(0))
    except OSError:  # EPERM where it is forbidden, EINVAL where a sandbox knows no such policy
        return False
    return True
