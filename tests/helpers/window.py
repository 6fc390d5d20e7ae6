"""Looking at device memory the only way there is on a device: by copies."""

from __future__ import annotations

from native._native import Driver, DriverError
from tests.helpers import memory


class Window:
    """A pinned buffer and a stream of `driver`, to read and write what it has mapped; `close` gives them back."""

    def __init__(self, driver: Driver, size: int = 4 << 20) -> None:
        self.driver = driver
        self.at = driver.pin(size)
        self.stream = driver.create_stream()

    def read(self, va: int, length: int) -> bytes:
        self.driver.copy_async(self.stream, [(self.at, va, length)], "d2h")
        assert self.driver.wait_stream(self.stream, 60)
        return memory.read(self.at, length)

    def write(self, va: int, data: bytes) -> None:
        memory.write(self.at, data)
        self.driver.copy_async(self.stream, [(va, self.at, len(data))], "h2d")
        assert self.driver.wait_stream(self.stream, 60)

    def sees(self, va: int) -> bool:
        """Whether the driver lets the byte at `va` be copied."""
        try:
            self.read(va, 1)
        except DriverError:
            return False
        return True

    def close(self) -> None:
        self.driver.destroy_stream(self.stream)
        self.driver.unpin(self.at)
