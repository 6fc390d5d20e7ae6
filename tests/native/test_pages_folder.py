"""Chunks on a tmpfs that somebody else mounted: what a container without privileges uses."""

from __future__ import annotations

import pytest

from native._native import DriverError, open_driver

TMPFS = "/dev/shm"
CHUNK = 2 << 20


def test_chunks_lie_in_the_given_tmpfs() -> None:
    driver = open_driver("host", 0, 4 * CHUNK, TMPFS)

    handle = driver.create(CHUNK)
    address = driver.reserve(CHUNK)
    driver.map(address, handle)

    assert driver.backing == "tmpfs"
    assert driver.stats().own_bytes == CHUNK
    driver.unmap(address)
    driver.destroy(handle)


@pytest.mark.parametrize(("folder", "name"), [("/proc", "EOPNOTSUPP"), ("/nowhere/at/all", "ENOENT")])
def test_another_kind_of_folder_is_refused_with_a_remedy(folder: str, name: str) -> None:
    with pytest.raises(DriverError) as refused:
        open_driver("host", 0, CHUNK, folder)

    assert refused.value.name == name
    assert "tmpfs" in refused.value.remedy
