"""The ledger says what should be, this measures what is (DESIGN §4): the driver's free bytes, and what the kernel says
that each process has mapped. What stands for two samples is said; a passing difference is an operation under way.

*Drift*: bytes that the ledger calls free and the driver does not have. They are taken off what the device publishes as
its capacity, as overhead that somebody else takes, so that scheduling goes on with what is left.

*Trespass*: chunks that a process has mapped though it neither holds nor views them. It could write to what is
another's: its engine is ended.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from native import maps
from native.files import FileId

if TYPE_CHECKING:
    from native.daemon.node import Node

log = logging.getLogger(__name__)

Trespass = frozenset[tuple[int, FileId]]
"""Process numbers, and files of chunks that they have mapped without a right to."""


def trespasses(mapped: Mapping[int, Mapping[FileId, int]], chunks: Iterable[tuple[FileId, frozenset[int]]]) -> Trespass:
    """PURE. `mapped`: bytes by file, by process. `chunks`: of each chunk its file, and who may have it mapped."""
    allowed = dict(chunks)
    return frozenset(
        (process, file)
        for process, found in mapped.items()
        for file in found
        if file in allowed and process not in allowed[file]
    )


class Measure:
    """`run` samples for ever. `drift` is what stands, in bytes by device; `held` what each process had mapped of chunks
    at the last sample."""

    def __init__(self, node: Node, period_s: float) -> None:
        self._node = node
        self._period_s = period_s
        self._last: dict[str, int] = {}
        self._before: Trespass = frozenset()
        self.samples = 0
        self.drift: dict[str, int] = {}
        self.held: dict[int, int] = {}

    async def run(self) -> None:
        while True:
            await asyncio.sleep(self._period_s)
            self.sample_drift()
            await self.sample_processes()
            self.samples += 1
            self._node.settle()

    def sample_drift(self) -> None:
        """Drift that has stood since the last sample, at its least in between."""
        now = {name: device.drift() for name, device in self._node.devices.items()}
        standing = {name: min(drift, self._last.get(name, 0)) for name, drift in now.items()}
        for name, drift in standing.items():
            if drift and drift != self.drift.get(name):
                log.warning("device %s: the ledger calls %d MiB free that are not there", name, drift >> 20)
        self._last = now
        self.drift = {name: drift for name, drift in standing.items() if drift}

    async def sample_processes(self) -> None:
        """Read every engine process's mappings; end the engines of those that stood in foreign chunks twice."""
        pids = {m.number: m.identity.pid for m in self._node.engines if m.process is not None and m.identity.pid}
        before = self._rights()
        mapped = await asyncio.to_thread(_read, pids)
        after = self._rights()
        # A chunk may change hands while it is looked for: who had a right to it before or after had one.
        chunks = [(file, before.get(file, frozenset()) | who) for file, who in after.items()]
        files = after.keys()
        self.held = {
            process: sum(size for file, size in found.items() if file in files) for process, found in mapped.items()
        }
        now = trespasses(mapped, chunks)
        for process in {process for process, _ in now & self._before}:
            self._end(process, len([one for one in now & self._before if one[0] == process]))
        self._before = now

    def _rights(self) -> dict[FileId, frozenset[int]]:
        """Who may have each chunk mapped, by its file."""
        rights: dict[FileId, frozenset[int]] = {}
        for name, device in self._node.devices.items():
            viewers, sharers = self._node.views.viewers(name), self._node.shares.rights(name)
            for chunk, file in device.files.items():
                owner = device.pool.owner_of(chunk)
                others = viewers.get(chunk, frozenset()) | sharers.get(chunk, frozenset())
                rights[file] = others | (frozenset() if owner is None else {owner.process})
        return rights

    def _end(self, process: int, chunks: int) -> None:
        for member in self._node.engines:
            if member.number == process:
                log.error("%s has %d chunks mapped that it gave back", member, chunks)
                self._node.engines.doom(member.holder, f"{member} has {chunks} chunks mapped that are not its own")


def _read(pids: Mapping[int, int]) -> dict[int, dict[FileId, int]]:
    found: dict[int, dict[FileId, int]] = {}
    for process, pid in pids.items():
        try:
            found[process] = maps.mapped(pid)
        except OSError as error:
            log.debug("pid %d cannot be looked at: %s", pid, error)
    return found
