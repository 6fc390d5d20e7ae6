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


def differences(live: Config, started: Config, now: Config) -> Report:
    """`live`: the file as it was applied last; `started`: as the processes were started with it. Values are not told:
    some are secret."""
    applied = [key for key in _moved(live, now) if _is_live(key)]
    waits = [Waits(key, _why(key, started, now)) for key in _moved(started, now) if not _is_live(key)]
    return Report(tuple(applied), tuple(waits))


def _moved(before: Config, after: Config) -> Iterator[str]:
    """Keys whose values differ, as the file spells them; a model that came or went is one key."""
    for section in Config.__struct_fields__:
        old, new = getattr(before, section), getattr(after, section)
        if isinstance(old, msgspec.Struct):
            yield from _fields(section, old, new)
        elif section == "models":
            yield from _models(old, new)
        elif old != new:
            yield section


def _models(before: Mapping[str, Model], after: Mapping[str, Model]) -> Iterator[str]:
    for name in sorted({*before, *after}):
        if name in before and name in after:
            yield from _fields(f"models.{name}", before[name], after[name])
        else:
            yield f"models.{name}"


def _fields(path: str, before: msgspec.Struct, after: msgspec.Struct) -> Iterator[str]:
    for field in before.__struct_fields__:
        if getattr(before, field) != getattr(after, field):
            yield f"{path}.{field}"


def _is_live(key: str) -> bool:
    if key.startswith("models."):
        return key.rpartition(".")[2] in Defaults.__struct_fields__
    return key.startswith(LIVE_SECTIONS)


def _why(key: str, started: Config, now: Config) -> str:
    section, _, rest = key.partition(".")
    if section != "models":
        return _WHY[section]
    if rest in started.models and rest not in now.models:
        return f"its engine runs on until it is ended: kill it, or restart the node without {rest}"
    if rest in now.models and rest not in started.models:
        return f"its engine is not started: vnpu engine {rest}, or restart the node"
    return f"its engine was started with it: restart the engine of {rest.rpartition('.')[0]}"


class ConfigFile(msgspec.Struct, frozen=True):
    """What a process was started with, and where from. `watch`: read it again whenever it changes."""

    path: Path
    environ: Mapping[str, str]
    config: Config
    watch: bool = False


class Reloader:
    """Reads the file again and hands what it says to `apply`, which puts the live part into effect. Make it while a
    loop runs."""

    def __init__(self, file: ConfigFile, apply: Callable[[Config], None]) -> None:
        self._path = file.path
        self._environ = file.environ
        self._started = self._live = file.config
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
            report = differences(self._live, self._started, now)
            self._apply(now)
            self._live = now
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
