"""What is known of an engine before it starts, and the spec that follows from it."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from coordinator.core.model import Device, Holder, Spec
from coordinator.errors import ConfigError
from engine_patch.estimate import Weights, footprint
from engine_patch.settings import Settings


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """`kv` is bytes of KV cache on each device."""

    model: str
    url: str
    pid: int
    boot_id: str
    weights: Weights
    kv: int
    aliases: tuple[str, ...] = ()
    versions: dict[str, str] = {}


def first_spec(plan: Plan, settings: Settings, holder: Holder, devices: Sequence[Device]) -> Spec:
    """The spec with an estimated footprint. `devices` are the states of `settings.devices`, in their order.

    Raises:
        ConfigError: a device cannot hold the model even alone, or is of another driver than the engine's.
    """
    for name, device in zip(settings.devices, devices, strict=True):
        if device.driver != settings.driver:
            raise ConfigError(
                f"device {name} has the driver {device.driver}, this engine was started for {settings.driver}",
                remedy=f"set VNPU_DRIVER={device.driver}, or correct VNPU_DEVICE",
            )
    need = footprint(plan.weights, plan.kv, len(devices), max(device.chunk for device in devices))
    for name, device in zip(settings.devices, devices, strict=True):
        if need.total > device.capacity:
            raise ConfigError(
                f"{plan.model} needs about {need.total >> 20} MiB of device {name} while it loads "
                f"({need.weights >> 20} for weights, {need.kv >> 20} for KV), which has {device.capacity >> 20} MiB",
                remedy="raise the device's capacity, lower --kv-cache-memory-bytes, or take a smaller model",
            )
    return Spec(
        holder=holder,
        model=plan.model,
        url=plan.url,
        devices=settings.devices,
        pid=plan.pid,
        boot_id=plan.boot_id,
        footprint=need,
        aliases=plan.aliases,
        versions=plan.versions,
    )
