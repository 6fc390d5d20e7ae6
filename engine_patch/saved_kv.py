"""KV of one rank that is saved in host memory while its pages are away."""

from __future__ import annotations

from collections.abc import Sequence

from engine_patch.bus import Bus, Entry, Range
from engine_patch.host_memory import SaveRoom
from engine_patch.stages import end_to_end
from native.client import Client


class SavedKv:
    """`entries`: the copies that bring back what was saved last. Not thread-safe."""

    def __init__(self, client: Client, bus: Bus, keep: int | None) -> None:
        """`keep`: bytes that will be saved at most, as far as is known; None: all there are."""
        self._bus, self._keep = bus, keep
        self._room = SaveRoom(client.report_host, bus.lock, bus.unlock)
        self.entries: list[Entry] = []

    def reserve(self, size: int, chunk: int) -> None:
        """Of `size` bytes of KV in chunks of `chunk`: room for what will be saved. A chunk more than `keep`: vLLM's
        null block and what else lies beside the KV cache is saved as well. Raises as `SaveRoom.fit`."""
        self._room.fit(size if self._keep is None else min(size, self._keep + chunk))

    def save(self, ranges: Sequence[Range]) -> int:
        """Returns bytes. Raises as `SaveRoom.fit`; then nothing was saved, and what was is still there."""
        size = sum(length for _, length in ranges)
        room = self._room.fit(size)
        self.entries = end_to_end(ranges, room.address)
        self._bus.save([(to, at, length) for at, to, length in self.entries])
        return size
