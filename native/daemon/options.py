"""What the daemon is told on its command line."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Mapping
from pathlib import Path

import msgspec

_UNITS = {"": 1, "b": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30}
_UNITS["ti"] = 2**40
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]i?)?b?", re.IGNORECASE)
_SMALL_CHUNK, _LARGE_CHUNK, _LARGE_CAPACITY = 2 << 20, 16 << 20, 512 << 20

_LEVELS = ("debug", "info", "warning", "error")


class DeviceOption(msgspec.Struct, frozen=True):
    """`ID:DRIVER:CAPACITY[:OVERHEAD]`; `capacity` is what engines may hold, so without the overhead. Bytes."""

    id: str
    driver: str
    capacity: int

    @property
    def chunk(self) -> int:
        """Large chunks cost less to map; a small device wants finer ones."""
        return _LARGE_CHUNK if self.capacity >= _LARGE_CAPACITY else _SMALL_CHUNK


class Options(msgspec.Struct, frozen=True):
    node: str
    etcd: tuple[str, ...]
    socket: Path
    state_dir: Path
    devices: tuple[DeviceOption, ...]
    host_ram: int = 0
    """Bytes for host masters and saved KV; 0: no limit."""
    lease_ttl: int = 5
    hello_timeout: float = 10.0
    """Seconds until an engine that says hello must stand in etcd with that nonce."""
    view_grace: float = 5.0
    """Seconds that whoever has a view open has to let go, where its owner unmaps or is dead."""
    log_level: str = "INFO"

    sample: float = 5.0
    """Seconds between two measurements of what the ledger says."""
    pages: str = "auto"
    """Where host pages come from, as `native.open_driver` takes it."""


def parse(arguments: list[str] | None = None, environ: Mapping[str, str] = os.environ) -> Options:
    """Exits with code 2 and a message where the arguments, or VNPU_LOG_LEVEL, cannot be used."""
    parser = _parser()
    got = parser.parse_args(arguments)
    names = [device.id for device in got.device]
    if len(set(names)) != len(names):
        parser.error(f"--device: an id is given twice: {', '.join(names)}")
    level = environ.get("VNPU_LOG_LEVEL") or "info"
    if level.lower() not in _LEVELS:
        parser.error(f"VNPU_LOG_LEVEL: {level!r} is not a log level: write one of {', '.join(_LEVELS)}")
    return Options(
        node=got.node,
        etcd=tuple(url for url in got.etcd.split(",") if url),
        socket=got.socket.absolute(),
        state_dir=got.state_dir.absolute(),
        devices=tuple(got.device),
        host_ram=got.host_ram,
        lease_ttl=got.lease_ttl,
        hello_timeout=got.hello_timeout,
        view_grace=got.view_grace,
        log_level=level.upper(),
        sample=got.sample,
        pages="auto" if got.pages is None else str(got.pages.absolute()),
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m native.daemon",
        description="Own the memory of this node's devices and lend it to engines under the fence of etcd's token.",
        epilog="Sizes may be written as 2GiB, 512MiB or plain bytes. Logs go to standard error.",
    )
    parser.add_argument("--node", required=True, help="name of this node; its keys in etcd carry it")
    parser.add_argument("--etcd", required=True, metavar="URL[,URL]", help="etcd's client endpoints")
    parser.add_argument("--socket", required=True, type=Path, help="Unix socket that engines connect to (0600)")
    parser.add_argument(
        "--state-dir", required=True, type=Path, help="folder for the ledger that outlives the daemon; on a real disk"
    )
    parser.add_argument(
        "--device",
        required=True,
        action="append",
        type=_device,
        metavar="ID:DRIVER:CAPACITY[:OVERHEAD]",
        help="a device, e.g. 0:host:2GiB; OVERHEAD bytes of it are left to the runtime; may be given repeatedly",
    )
    parser.add_argument(
        "--host-ram", default=0, type=_size, metavar="BYTES", help="limit for host masters and saved KV; 0: none"
    )
    parser.add_argument(
        "--pages",
        type=Path,
        metavar="DIR",
        help="take host pages from the tmpfs mounted at DIR (with huge=always, for this daemon alone); default: "
        "a private one where the system allows it, else memfd on 4 KiB pages",
    )
    parser.add_argument("--lease-ttl", default=5, type=int, metavar="SECONDS", help="of the daemon's own lease (5)")
    parser.add_argument(
        "--hello-timeout",
        default=10.0,
        type=float,
        metavar="SECONDS",
        help="how long an engine that connects may take to show in etcd (10)",
    )
    parser.add_argument(
        "--view-grace",
        default=5.0,
        type=float,
        metavar="SECONDS",
        help="how long a process may take to let go of viewed pages that change hands (5); then it is killed",
    )
    parser.add_argument(
        "--sample",
        default=5.0,
        type=float,
        metavar="SECONDS",
        help="how often memory is measured against the ledger (5)",
    )
    return parser


def _size(text: str) -> int:
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no size: write it like 2GiB, 512MiB or 1073741824")
    return int(float(match[1]) * _UNITS[(match[2] or "").lower()])


def _device(text: str) -> DeviceOption:
    parts = text.split(":")
    if len(parts) not in (3, 4) or not all(parts):
        raise argparse.ArgumentTypeError(f"{text!r}: write ID:DRIVER:CAPACITY[:OVERHEAD], e.g. 0:host:2GiB")
    capacity = _size(parts[2]) - (_size(parts[3]) if len(parts) == 4 else 0)
    if "/" in parts[0] or len(parts[0]) > 64:
        raise argparse.ArgumentTypeError(f"{parts[0]!r}: a device id has no slash and at most 64 characters")
    device = DeviceOption(parts[0], parts[1], capacity)
    if capacity < device.chunk:
        raise argparse.ArgumentTypeError(f"{text!r}: capacity without overhead is under one chunk of 2 MiB")
    return device
