"""The token protocol's model checker (tests/model), built once and asked; and what it must be told of a real run."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from coordinator.core.model import Device, Holder, Phase, Residency, Seat, Spec
from coordinator.store import keys
from coordinator.store.base import Changes, KeyValue
from coordinator.store.codec import decode

SOURCES = Path(__file__).parents[1] / "model" / "csrc"
COMPILER = ("g++", "-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror")
BUILD_S = 300


def build(folder: Path) -> Path:
    """The checker's program, compiled into `folder` where these sources were not yet."""
    sources = sorted(SOURCES.glob("*.cpp"))
    content = b"".join(path.read_bytes() for path in sorted(SOURCES.iterdir()))
    program = folder / f"token_model-{hashlib.sha256(content).hexdigest()[:16]}"
    if not program.exists():
        folder.mkdir(parents=True, exist_ok=True)
        beside = program.with_suffix(f".{os.getpid()}")
        subprocess.run([*COMPILER, "-o", str(beside), *map(str, sources)], check=True, timeout=BUILD_S)
        beside.replace(program)
    return program


def ask(program: Path, *arguments: str, timeout: float = 3600, **options: int) -> dict[str, Any]:
    """The JSON object it prints. `options` are described in tests/model/README.md."""
    line = [str(program), *arguments, *(f"{name}={value}" for name, value in options.items())]
    done = subprocess.run(line, check=True, capture_output=True, text=True, timeout=timeout)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


class Transcript:
    """What etcd showed of a run on one device that holds one engine, as lines that the model reads.

    Engines are numbered as they register; a process that was started again is another one.
    """

    def __init__(self, device: str) -> None:
        self.lines: list[str] = []
        self.deaths = 0
        self._device = device
        self._numbers: dict[Holder, int] = {}
        self._specs: dict[str, tuple[Holder, int]] = {}
        self._answered: dict[Holder, int] = {}
        self._seat = 0
        self._shown: tuple[int, int] = (0, 0)

    @property
    def engines(self) -> int:
        return len(self._numbers)

    def add(self, changes: Changes) -> None:
        """One revision. Registration comes before what else it brought, an order before what it led to."""
        news = {change.key: change.kv for change in changes.changes}
        for key, kv in sorted(news.items(), key=lambda item: _rank(item[0], self._device)):
            self._read(key, kv, changes.revision)

    def _read(self, key: str, kv: KeyValue | None, revision: int) -> None:
        engines = key.startswith(keys.ROOT + "engines/")
        if engines and key.endswith("/spec"):
            self._spec(key, kv)
        elif engines and key.endswith("/residency") and kv is not None:
            self._residency(decode(Residency, kv.value))
        elif key == keys.seat(self._device) and kv is not None:
            seat = decode(Seat, kv.value)
            self._seat = revision
            self.lines.append(f"{seat.order} {self._numbers[seat.holder]}")
        elif key == keys.device(self._device):
            self._daemon(decode(Device, kv.value) if kv is not None else None)

    def _spec(self, key: str, kv: KeyValue | None) -> None:
        if kv is None:
            holder, _ = self._specs.pop(key)
            self.lines.append(f"gone {self._numbers[holder]}")
            return
        holder = decode(Spec, kv.value).holder
        number = self._numbers.setdefault(holder, len(self._numbers))
        if self._specs.get(key) != (holder, kv.lease):
            self.lines.append(f"register {number}")
        self._specs[key] = (holder, kv.lease)

    def _residency(self, residency: Residency) -> None:
        """Phases on the way, and what is only said again, are not answers."""
        fence = residency.fence.revision if residency.fence is not None else 0
        final = residency.phase in (Phase.RESIDENT, Phase.OFFLOADED)
        if fence and final and not residency.busy and self._answered.get(residency.holder) != fence:
            self._answered[residency.holder] = fence
            self.lines.append(f"answer {self._numbers[residency.holder]} {residency.phase}")

    def _daemon(self, device: Device | None) -> None:
        if device is None:
            self.lines.append("restart 0")
            self._shown = (-1, -1)
            return
        owners = sum({1 << self._numbers[owner.holder] for owner in device.owners if owner.bytes.total})
        if self._shown != (device.closed, owners):
            self._shown = (device.closed, owners)
            settled = "settled" if device.closed >= self._seat else "open"
            self.lines.append(f"publish 0 owners {owners} {settled}")


def _rank(key: str, device: str) -> int:
    """Deaths first: a lease that ends takes the spec, and what else was on it."""
    if key.endswith("/spec"):
        return 0
    return 1 if key == keys.seat(device) else 2


def accepted(program: Path, folder: Path, lines: Iterable[str], **options: int) -> tuple[int, int]:
    """How many lines of the trace fit the model, and how many there are."""
    file = folder / "trace"
    file.write_text("".join(f"{line}\n" for line in lines))
    answer = ask(program, "--accept", str(file), **options)
    return answer["accepted"], answer["lines"]
