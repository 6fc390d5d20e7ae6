"""When a process of the node is up, read from what it has published in etcd. Pure."""

from __future__ import annotations

from coordinator.config import Config
from coordinator.core.model import Coordinator, Daemon, Device, Phase, Residency, Spec, Token
from coordinator.picture import Picture

UP = frozenset({Phase.RESIDENT, Phase.DRAINING, Phase.OFFLOADED, Phase.RESTORING})
"""An engine in one of these has been resident once."""


def daemon(picture: Picture, config: Config, pid: int) -> bool:
    """The daemon with this process id serves, and owns every device of the configuration."""
    found = picture.of(Daemon).get(config.node)
    devices = picture.of(Device)
    return (
        found is not None
        and found.pid == pid
        and all(f"{config.node}/{device.name}" in devices for device in config.devices)
    )


def coordinator(picture: Picture, identifier: str, pid: int) -> bool:
    """The coordinator with this process id has published its URLs; it leads, or stands by for one that does."""
    found = picture.of(Coordinator).get(identifier)
    return found is not None and found.pid == pid


def engine(picture: Picture, name: str, pid: int) -> bool:
    """The engine with this process id has been resident."""
    spec, residency = picture.of(Spec).get(name), picture.of(Residency).get(name)
    return (
        spec is not None
        and residency is not None
        and spec.pid == pid
        and residency.holder == spec.holder
        and residency.phase in UP
    )


def phase(picture: Picture, name: str) -> str:
    """The engine's phase for people; empty while it has published none."""
    residency = picture.of(Residency).get(name)
    return residency.phase if residency is not None else ""


def starting(picture: Picture, name: str, pid: int) -> str:
    """How far the start of the engine with this process id is."""
    spec = picture.of(Spec).get(name)
    if spec is None or spec.pid != pid:
        return "importing vLLM"
    if any(token.holder == spec.holder for token in picture.of(Token).values()):
        return "loading weights"
    return "waiting for the device"
