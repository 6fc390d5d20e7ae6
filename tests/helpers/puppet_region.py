"""A puppet's region of device memory, mapped as an engine maps it: by a driver, in a reservation."""

from __future__ import annotations

from engine_patch.region import Region
from native._native import open_driver
from native.client import Client
from native.protocol import Kind
from tests.helpers.memory import read, write


class RegionHands:
    """One region of `chunks` chunks on the driver's device 0; read and written by copies, as devices want it."""

    def __init__(self, client: Client, device: str, driver: str, hint: int, chunks: int, chunk: int) -> None:
        self._driver = open_driver(driver)
        self._region = Region(self._driver, client, device, Kind.WEIGHTS, chunk, hint, chunks * chunk)
        self._stream = self._driver.create_stream()
        self._buffer = self._driver.pin(chunk)

    def map(self, *indices: int) -> list[int]:
        self._region.map(indices, 30.0)
        return list(self._region.indices)

    def drop(self, *indices: int) -> list[int]:
        self._region.drop(indices, 30.0)
        return list(self._region.indices)

    def write(self, index: int, text: str) -> None:
        write(self._buffer, text.encode())
        at = self._region.base + index * self._region.chunk
        self._driver.copy_async(self._stream, [(at, self._buffer, len(text))], "h2d")
        self._driver.wait_stream(self._stream)

    def read(self, index: int, length: int) -> str:
        at = self._region.base + index * self._region.chunk
        self._driver.copy_async(self._stream, [(self._buffer, at, length)], "d2h")
        self._driver.wait_stream(self._stream)
        return read(self._buffer, length).decode(errors="replace")
