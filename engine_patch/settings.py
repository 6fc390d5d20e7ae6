"""What an engine's environment says: one immutable value, read once in each of the engine's processes."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, MutableMapping

import msgspec

from coordinator.errors import ConfigError

BIRTH = "VNPU_BIRTH"
"""Set by the agent for the engine's own children, see `Birth`. Nobody else sets it."""

DRIVERS = ("host", "cuda", "ascend")
_DEVICE = re.compile(r"[A-Za-z0-9_.-]{1,64}")


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Times in seconds; `kv_keep`: bytes, None: no limit. `devices` are ids as in etcd, `<node>/<device>`, one for each
    rank, all of `driver`. `streams`: of an Ascend device, that this engine may use; None: no limit. `share_weights`:
    they may lie in the pages of another engine of the same content, where the device can. `async_runner`: asynchronous
    steps on the host; None: where they serve this engine."""

    endpoints: tuple[str, ...]
    node: str = "local"
    devices: tuple[str, ...] = ("local/0",)
    engine: str | None = None
    socket: str | None = None
    url: str | None = None
    max_queue: int = 512
    max_wait: float = 300.0
    lease_ttl: int = 5
    kv_keep: int | None = None
    driver: str = "host"
    streams: int | None = None
    share_weights: bool = True
    async_runner: bool | None = False

    def device(self, rank: int) -> str:
        """The name the daemon knows the device of `rank` by."""
        return self.devices[rank].rpartition("/")[2]


class Birth(msgspec.Struct, frozen=True, kw_only=True):
    """What the API server hands down to its workers: who the engine is, where its daemon listens, the driver of each
    rank's device, how many bytes of each kind were estimated for a device (`shared` of the weights' for layers that
    ranks share), which processors the engine may use, and where its agent listens (`engine_patch.desk`)."""

    engine: str
    nonce: str
    socket: str
    drivers: tuple[str, ...]
    weights: int
    kv: int
    shared: int = 0
    cpus: tuple[int, ...] = ()
    desk: str = ""


def hand_down(birth: Birth, environ: MutableMapping[str, str] = os.environ) -> None:
    """For processes that are started from now on."""
    environ[BIRTH] = msgspec.json.encode(birth).decode()


def inherited(environ: Mapping[str, str] = os.environ) -> Birth:
    """What was handed down to this worker.

    Raises:
        ConfigError: nothing was: the worker was not started by an API server with an agent.
    """
    try:
        return msgspec.json.decode(environ.get(BIRTH, ""), type=Birth)
    except msgspec.MsgspecError:
        raise ConfigError(
            f"{BIRTH} is not set: this worker's API server has no agent",
            remedy="start the engine as `vnpu engine --print` shows",
        ) from None


def endpoints(environ: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """The etcd endpoints of the environment; empty: vNPU is off in this process."""
    text = environ.get("VNPU_ETCD_ENDPOINTS") or environ.get("ETCD_ENDPOINTS") or ""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def driver(environ: Mapping[str, str] = os.environ) -> str:
    """The driver of the engine's devices, by which its platform is chosen.

    Raises:
        ConfigError: there is no such driver.
    """
    name = environ.get("VNPU_DRIVER") or "host"
    if name not in DRIVERS:
        raise ConfigError(f"VNPU_DRIVER={name!r} is no driver", remedy=f"give one of {', '.join(DRIVERS)}")
    return name


def read(environ: Mapping[str, str] = os.environ) -> Settings | None:
    """The settings of this process, or None where no endpoints are given: the plugins are inert then.

    Raises:
        ConfigError: a variable cannot be used; the message names it and what it should be.
    """
    found = endpoints(environ)
    if not found:
        return None
    node = environ.get("VNPU_NODE") or "local"
    return Settings(
        endpoints=found,
        node=node,
        devices=_devices(environ.get("VNPU_DEVICE") or "0", node),
        engine=environ.get("VNPU_ENGINE_ID") or None,
        socket=environ.get("VNPU_DAEMON_SOCKET") or None,
        url=environ.get("VNPU_URL") or None,
        max_queue=int(_number(environ, "VNPU_MAX_QUEUE", 512, 0, 1_000_000)),
        max_wait=_number(environ, "VNPU_MAX_WAIT", 300, 0, 86_400),
        lease_ttl=int(_number(environ, "VNPU_LEASE_TTL", 5, 1, 3600)),
        kv_keep=int(_number(environ, "VNPU_KV_KEEP", 0, 0, 2**50)) if environ.get("VNPU_KV_KEEP") else None,
        driver=driver(environ),
        streams=int(_number(environ, "VNPU_STREAMS", 0, 1, 65536)) if environ.get("VNPU_STREAMS") else None,
        share_weights=_number(environ, "VNPU_SHARE_WEIGHTS", 1, 0, 1) != 0,
        async_runner=_async_runner(environ),
    )


def _async_runner(environ: Mapping[str, str]) -> bool | None:
    if environ.get("VNPU_ASYNC_RUNNER") == "auto":
        return None
    return _number(environ, "VNPU_ASYNC_RUNNER", 0, 0, 1) != 0


def required(environ: Mapping[str, str] = os.environ) -> Settings:
    """The settings of a process that cannot do without. Raises ConfigError where there are none."""
    found = read(environ)
    if found is None:
        raise ConfigError("VNPU_ETCD_ENDPOINTS is not set", remedy="set it for the engine's whole environment")
    return found


def _devices(text: str, node: str) -> tuple[str, ...]:
    names = [part.strip() for part in text.split(",")]
    if len(set(names)) != len(names) or not all(_DEVICE.fullmatch(name) for name in names):
        raise ConfigError(
            f"VNPU_DEVICE={text!r} is no list of device ids",
            remedy="give the daemon's ids, one for each tensor-parallel rank, e.g. 0 or 0,1",
        )
    return tuple(f"{node}/{name}" for name in names)


def _number(environ: Mapping[str, str], name: str, default: float, least: float, most: float) -> float:
    text = environ.get(name) or str(default)
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not least <= value <= most:
        raise ConfigError(f"{name}={text!r} is not usable", remedy=f"give a number from {least:g} to {most:g}")
    return value
