"""Physical truth: device pages with their content, and processes that have them mapped. What daemons believe is theirs.

Invariant I4 is judged here: the pages that exist on a device never exceed what it has, and no page is mapped by two
engines. A page exists while a living daemon holds it or a living process has it mapped.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

from native._native import DriverError
from native.processes import Gone, Identity, Process
from tests.helpers.whole.loop import Proc

BOOT = "boot"


class Violated(AssertionError):
    """What must hold does not."""


class Chunk:
    """One physical page range."""

    def __init__(self, device: Device, daemon: Proc) -> None:
        self.device = device
        self.daemon = daemon
        self.mapped: dict[int, Proc] = {}
        self.content = ""

    @property
    def exists(self) -> bool:
        return not self.daemon.dead or any(not proc.dead for proc in self.mapped.values())


class Device:
    def __init__(self, id_: str, capacity: int, chunk: int) -> None:
        self.id = id_
        self.capacity = capacity
        self.chunk = chunk
        self.chunks: list[Chunk] = []

    def create(self, daemon: Proc) -> Chunk:
        self.chunks = [chunk for chunk in self.chunks if chunk.exists]
        if (len(self.chunks) + 1) * self.chunk > self.capacity:
            raise Violated(f"I4: {len(self.chunks) + 1} pages of {self.chunk} exist on {self.id} of {self.capacity}")
        made = Chunk(self, daemon)
        self.chunks.append(made)
        return made


class SimDriver:
    """`native.Driver` as far as the daemon uses it, sharing by number. One for each life of a daemon."""

    name = "sim"
    huge = True
    backing = "nothing"
    sharing = "handle"
    granularity = 1

    def __init__(self, machine: Machine, device: Device | None, daemon: Proc) -> None:
        self._machine = machine
        self._device = device
        self._daemon = daemon

    def create(self, size: int) -> int:
        if self._device is None:
            raise DriverError("no host memory here")
        try:
            return self._machine.number(self._device.create(self._daemon))
        except Violated as violated:
            self._machine.violate(str(violated))
            raise

    def export_handle(self, handle: int) -> int:
        return handle

    def permit(self, handle: int, share_ids: tuple[int, ...]) -> None:
        pass

    def wipe(self, handles: Sequence[int]) -> None:
        for handle in handles:
            self._machine.wipe(handle)

    def free_bytes(self) -> int:
        return 1 << 60


class SimProcess:
    """`native.processes.Process` of one daemon's life."""

    def __init__(self, machine: Machine, pid: int, fd: int) -> None:
        self._machine = machine
        self._fd = fd
        self.identity = Identity(pid, pid, BOOT)
        self.key = self.identity

    def fileno(self) -> int:
        return self._fd

    def kill(self) -> bool:
        self._machine.kill(self.identity.pid)
        return True

    def close(self) -> None:
        self._machine.forget(self._fd)


class Machine:
    """All nodes' hardware and kernels. `kill(pid)` is SIGKILL, `violate` says that an invariant is broken."""

    def __init__(self, violate: Callable[[str], None], kill: Callable[[int], None]) -> None:
        self.violate = violate
        self.kill = kill
        self.devices: dict[str, Device] = {}
        self.living: dict[int, Proc] = {}
        self._watching: dict[int, int] = {}
        self._chunks: dict[int, Chunk] = {}
        self._numbers = itertools.count(1)

    def number(self, chunk: Chunk) -> int:
        handle = next(self._numbers)
        self._chunks[handle] = chunk
        return handle

    def process(self, pid: int) -> Process:
        fd = next(self._numbers)
        self._watching[fd] = pid
        found: Any = SimProcess(self, pid, fd)
        return found  # type: ignore[no-any-return]

    def reopen(self, identity: Identity) -> Process:
        if identity.pid not in self.living:
            raise Gone(f"pid {identity.pid} is gone")
        return self.process(identity.pid)

    def forget(self, fd: int) -> None:
        self._watching.pop(fd, None)

    def watchers(self, pid: int) -> list[int]:
        return [fd for fd, watched in self._watching.items() if watched == pid]

    def map(self, handle: int, pid: int) -> Chunk:
        chunk = self._chunks[handle]
        others = [proc.name for other, proc in chunk.mapped.items() if other != pid and not proc.dead]
        if others:
            self.violate(f"I4: a page of {chunk.device.id} is mapped by {self.living[pid].name} and {others[0]}")
        chunk.mapped = {pid: self.living[pid]}
        return chunk

    def wipe(self, handle: int) -> None:
        self._chunks[handle].content = ""

    def unmap(self, chunk: Chunk, pid: int) -> None:
        chunk.mapped.pop(pid, None)
