"""Memory of the endpoints: the host driver's device pages, as engines have it, and masters on the same tmpfs."""

from __future__ import annotations

from native import _native

CHUNK = 64 << 20
"""Bytes."""


class Pages:
    """`size` bytes, a multiple of `CHUNK`, at `address`; never given back before the process ends. `chunks`:
    descriptors and bytes, for who maps it too."""

    def __init__(self, size: int) -> None:
        self._driver = _native.open_driver("host")
        self.size = size
        self.address = self._driver.reserve(size)
        handles = [self._driver.create(CHUNK) for _ in range(size // CHUNK)]
        self._driver.map_many([(self.address + n * CHUNK, handle) for n, handle in enumerate(handles)])
        self.chunks = [(self._driver.export_handle(handle), CHUNK) for handle in handles]

    @property
    def huge(self) -> bool:
        """Whether the system gave huge pages."""
        return self._driver.stats().huge_bytes >= self.size
