"""`vnpu config check`: every fault of a configuration, before anything is started."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import msgspec

from coordinator import config as configuration
from coordinator.config_faults import faults
from coordinator.errors import ConfigError

MISUSED = 2


class Fault(msgspec.Struct, frozen=True):
    """One of them; `key` is empty where the file as a whole is at fault, else as `models.qwen-a.kv_cache`."""

    file: str
    key: str
    fault: str
    remedy: str

    @classmethod
    def of(cls, error: ConfigError) -> Fault:
        return cls(error.file, error.key, error.fault, error.remedy)


class Checked(msgspec.Struct, frozen=True):
    """What was found in `file`."""

    file: str
    sound: bool
    faults: tuple[Fault, ...]


def check(file: Path, environ: Mapping[str, str], *, as_json: bool) -> int:
    """Prints what was found. 0: sound; 2: not."""
    found = faults(file, environ)
    if as_json:
        checked = Checked(str(file), not found, tuple(map(Fault.of, found)))
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(checked)).decode() + "\n")
    elif found:
        sys.stdout.write("".join(f"{error}\n" for error in found))
        sys.stderr.write(f"vnpu: {len(found)} fault{'s' if len(found) > 1 else ''} in {file}\n")
    else:
        config = configuration.load(file, environ)
        names = ", ".join(config.models)
        sys.stdout.write(f"{file} is sound: node {config.node}, devices {_devices(config)}, models {names}\n")
    return MISUSED if found else 0


def _devices(config: configuration.Config) -> str:
    return ", ".join(device.name for device in config.devices)
