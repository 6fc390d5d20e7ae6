"""`vnpu.yaml` read again while everything runs: what can change live does, and what cannot is named.

`differences` is pure: two configurations in, a report out. `Reloader` is the shell that reads the file.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import msgspec

from coordinator.config import Config, Defaults, Model, load
from coordinator.errors import ConfigError
from coordinator.live_models import WITH_NODE, carried, why_not_in, why_stays

log = logging.getLogger(__name__)

LOOK_S = 2.0
"""Between looks at the file. inotify tells nothing of a file that is mounted into a container and replaced outside."""
READ_S = 30.0
"""Reading looks at every model's folder too, which may lie on a network."""
LIVE_SECTIONS = (
    "defaults.",
    "policy.",
    "gateway.max_queue",
    "gateway.max_wait",
    "gateway.api_keys",
    "admin.api_key",
    "admin.roles",
)
_WHY = {
    "etcd": "every process is connected to it: restart the node",
    "node": "it is part of every key in etcd: restart the node",
    "devices": "the node daemon owns them: restart the node",
    "host_ram": "the node daemon keeps to it: restart the node",
    "gateway": "the listener stands: restart the coordinator",
    "admin": "the listener stands: restart the coordinator",
    "log": "each process read it when it started: restart the node",
}


class Waits(msgspec.Struct, frozen=True):
    """A key that has another value in the file than in the running node, and what would bring it in."""

    key: str
    why: str


class Report(msgspec.Struct, frozen=True):
    """What reading the file again has changed: keys that hold from now on, and keys that wait."""

    applied: tuple[str, ...] = ()
    waits: tuple[Waits, ...] = ()


class _Moved(msgspec.Struct, frozen=True):
    """A key, as the file spells it, whose value differs. `model`: it is this engine's; `whole`: all of that came or
    went."""

    key: str
    live: bool
    model: str = ""
    whole: bool = False


def differences(live: Config, started: Config, now: Config, running: Config | None = None) -> Report:
    """`live`: the file as it was applied last; `started`: as the processes were started with it; `running`: as they go
    on with other models (None: nobody here starts or ends an engine). Values are not told: some are secret."""
    turned = sorted({*started.models} ^ {*running.models}) if running is not None else []
    stands = running or started
    applied = [*(moved.key for moved in _moved(live, now) if moved.live), *(f"models.{name}" for name in turned)]
    waits = [
        Waits(moved.key, _why(moved, stands, now, turns=running is not None))
        for moved in _moved(stands, now)
        if not moved.live
    ]
    return Report(tuple(applied), tuple(waits))


def _moved(before: Config, after: Config) -> Iterator[_Moved]:
    for section in Config.__struct_fields__:
        old, new = getattr(before, section), getattr(after, section)
        if isinstance(old, msgspec.Struct):
            for field in _fields(old, new):
                key = f"{section}.{field}"
                yield _Moved(key, key.startswith(LIVE_SECTIONS))
        elif section == "models":
            yield from _models(old, new)
        elif old != new:
            yield _Moved(section, live=False)


def _models(before: Mapping[str, Model], after: Mapping[str, Model]) -> Iterator[_Moved]:
    for name in sorted({*before, *after}):
        if name not in before or name not in after:
            yield _Moved(f"models.{name}", live=False, model=name, whole=True)
            continue
        for field in _fields(before[name], after[name]):
            yield _Moved(f"models.{name}.{field}", field in Defaults.__struct_fields__, name)


def _fields(before: msgspec.Struct, after: msgspec.Struct) -> Iterator[str]:
    for field in before.__struct_fields__:
        if getattr(before, field) != getattr(after, field):
            yield field


def _why(moved: _Moved, stands: Config, now: Config, *, turns: bool) -> str:
    name = moved.model
    if not name:
        return _WHY[moved.key.partition(".")[0]]
    if not moved.whole:
        return f"its engine was started with it: restart the engine of {name}"
    if name in now.models:
        return (
            why_not_in(name, stands, now) if turns else f"its engine is not started: vnpu engine {name}, or {WITH_NODE}"
        )
    if turns:
        return why_stays(name, now)
    return f"its engine runs on until it is ended: kill it, or restart the node without {name}"


class ConfigFile(msgspec.Struct, frozen=True):
    """What a process was started with, and where from. `watch`: read it again whenever it changes. `supervised`:
    whoever started the process starts and ends engines too, as the file says."""

    path: Path
    environ: Mapping[str, str]
    config: Config
    watch: bool = False
    supervised: bool = False


class Reloader:
    """Reads the file again and hands to `apply` what it says, and with which models the node goes on; `apply` puts the
    live part into effect. Make it while a loop runs."""

    def __init__(self, file: ConfigFile, apply: Callable[[Config, Config], None]) -> None:
        self._path = file.path
        self._environ = file.environ
        self._stands = self._live = file.config
        self._supervised = file.supervised
        self._apply = apply
        self._one = asyncio.Lock()

    async def reload(self) -> Report:
        """What was applied and what waits. Raises ConfigError, and then nothing was applied."""
        async with self._one:
            try:
                async with asyncio.timeout(READ_S):
                    now = await asyncio.to_thread(load, self._path, self._environ)
            except TimeoutError:
                raise ConfigError(f"{self._path}: not read within {READ_S:g} s", remedy="try again") from None
            running = carried(self._stands, now) if self._supervised else None
            report = differences(self._live, self._stands, now, running)
            self._apply(now, running or self._stands)
            self._live, self._stands = now, running or self._stands
        log.info("%s: applied %s", self._path, ", ".join(report.applied) or "nothing: nothing has changed")
        for waits in report.waits:
            log.warning("%s: %s is not applied: %s", self._path, waits.key, waits.why)
        return report

    async def watch(self) -> None:
        """Until cancelled: reload whenever the file has changed and stands still; once at first too: it may have
        changed since it was read."""
        known = before = None
        while True:
            await asyncio.sleep(LOOK_S)
            stamp = await asyncio.to_thread(self._stamp)
            if stamp == before != known:
                known = stamp
                await self._try()
            before = stamp

    async def _try(self) -> None:
        try:
            await self.reload()
        except ConfigError as error:
            log.error("not applied: %s", error)

    def _stamp(self) -> tuple[int, int, int] | None:
        """What changes with the file; None: it is not there."""
        try:
            stat = self._path.stat()
        except OSError:
            return None
        return stat.st_mtime_ns, stat.st_size, stat.st_ino
