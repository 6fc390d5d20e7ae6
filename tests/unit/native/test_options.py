"""The daemon's command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from native.daemon.options import DeviceOption, parse

BASE = ["--node", "n", "--etcd", "http://a:1,http://b:2", "--socket", "/run/s", "--state-dir", "/var/s"]


def test_the_contract() -> None:
    options = parse([*BASE, "--device", "0:host:2GiB", "--device", "1:host:1GiB:256MiB", "--host-ram", "1GB"])
    assert options.etcd == ("http://a:1", "http://b:2")
    assert options.devices == (DeviceOption("0", "host", 2 << 30), DeviceOption("1", "host", 768 << 20))
    assert (options.host_ram, options.lease_ttl, options.socket) == (10**9, 5, Path("/run/s"))


@pytest.mark.parametrize(("capacity", "chunk"), [("512MiB", 16 << 20), ("511MiB", 2 << 20), ("2MiB", 2 << 20)])
def test_large_devices_have_large_chunks(capacity: str, chunk: int) -> None:
    assert parse([*BASE, "--device", f"0:host:{capacity}"]).devices[0].chunk == chunk


@pytest.mark.parametrize(
    ("device", "says"),
    [
        ("0:host", "write ID:DRIVER:CAPACITY"),
        ("0::1GiB", "write ID:DRIVER:CAPACITY"),
        ("0:host:lots", "is no size"),
        ("0:host:1MiB", "under one chunk"),
        ("0:host:1GiB:1GiB", "under one chunk"),
        ("a/b:host:1GiB", "no slash"),
        ("0:host:-1", "is no size"),
    ],
)
def test_mistakes_are_told(capsys: pytest.CaptureFixture[str], device: str, says: str) -> None:
    with pytest.raises(SystemExit, match="2"):
        parse([*BASE, "--device", device])
    assert says in capsys.readouterr().err


def test_a_device_twice(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        parse([*BASE, "--device", "0:host:1GiB", "--device", "0:host:1GiB"])
    assert "given twice" in capsys.readouterr().err
