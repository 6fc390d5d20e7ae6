"""A chunk given to another process: mapped there, written there, and still good when that process is killed."""

from __future__ import annotations

import os
import subprocess
import sys

from native._native import Driver, crc32c, open_driver
from native.verify.bench import fill
from native.verify.report import Section

PATIENCE_S = 120.0


def shared(driver: Driver, library: str, chunk: int) -> Section:
    """As an exporter, with an importer that is a process of its own. Raises DriverError."""
    handle, base, host = driver.create(chunk), driver.reserve(chunk), driver.pin(chunk)
    stream = driver.create_stream()
    driver.map(base, handle)
    try:
        wanted = fill(host, chunk)
        driver.copy_async(stream, [(base, host, chunk)], "h2d")
        driver.wait_stream(stream, PATIENCE_S)
        shareable = driver.export_handle(handle)
        by_descriptor = driver.sharing == "descriptor"
        importer = _Importer(driver, library, shareable, chunk)
        try:
            importer_id = int(importer.line())
            driver.permit(handle, [importer_id])
            importer.go()
            found = int(importer.line())
        finally:
            importer.kill()
            if by_descriptor:
                os.close(shareable)
        driver.copy_async(stream, [(host, base, chunk)], "d2h")
        driver.wait_stream(stream, PATIENCE_S)
        kept = crc32c(host, chunk)
    finally:
        driver.unmap(base)
        driver.destroy(handle)
        driver.release(base)
        driver.destroy_stream(stream)
        driver.unpin(host)
    rows = (("by", driver.sharing), ("share_id here, there", f"{driver.share_id()}, {importer_id}"))
    failure = "" if found == wanted else "another process sees other bytes"
    return Section("Sharing", rows, failure or ("" if kept == wanted else "the importer's death changed the bytes"))


class _Importer:
    def __init__(self, driver: Driver, library: str, shareable: int, chunk: int) -> None:
        beside = (shareable,) if driver.sharing == "descriptor" else ()
        words = [driver.name, str(driver.device), library, str(shareable), str(chunk)]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "native.verify.sharing", *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            pass_fds=beside, text=True,
        )  # fmt: skip

    def line(self) -> str:
        out = self._process.stdout
        said = out.readline() if out is not None else ""
        if not said:
            raise TimeoutError("the importing process ended before it was done; its error stands above")
        return said

    def go(self) -> None:
        if self._process.stdin is not None:
            self._process.stdin.write("\n")
            self._process.stdin.flush()

    def kill(self) -> None:
        """SIGKILL while it has the chunk mapped."""
        self._process.kill()
        self._process.communicate()


def _import(name: str, device: str, library: str, shareable: str, size: str) -> None:
    """In the importing process: say its share_id, wait for a line, say the CRC-32C of the chunk, wait for the end."""
    driver, chunk = open_driver(name, int(device), library=library), int(size)
    sys.stdout.write(f"{driver.share_id()}\n")
    sys.stdout.flush()
    sys.stdin.readline()
    base, host, stream = driver.reserve(chunk), driver.pin(chunk), driver.create_stream()
    driver.map(base, driver.import_handle(int(shareable), chunk))
    driver.copy_async(stream, [(host, base, chunk)], "d2h")
    driver.wait_stream(stream, PATIENCE_S)
    sys.stdout.write(f"{crc32c(host, chunk)}\n")
    sys.stdout.flush()
    sys.stdin.readline()


if __name__ == "__main__":
    _import(*sys.argv[1:])
