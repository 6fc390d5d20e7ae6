"""Which devices to think of when another one changes: a group's victim may be busy on a device nobody waits for."""

from __future__ import annotations

from collections.abc import Iterable

from coordinator.core.model import DeviceId


class Ties:
    """Each tie is good for one change."""

    def __init__(self) -> None:
        self._ties: dict[DeviceId, set[DeviceId]] = {}

    def tie(self, device: DeviceId, others: Iterable[DeviceId]) -> None:
        """When `device` changes, think of `others` too."""
        also = {other for other in others if other != device}
        if also:
            self._ties.setdefault(device, set()).update(also)

    def take(self, devices: Iterable[DeviceId]) -> set[DeviceId]:
        """Those tied to `devices`; the ties are used up."""
        return {other for device in devices for other in self._ties.pop(device, ())}

    def clear(self) -> None:
        self._ties.clear()
