"""Which engines a configuration makes, and on which devices: one for each model or replica of it, or with `device: any`
one on each device that can hold it. A live engine does not move; the scheduler chooses among a model's engines.

No model's name has an `@`, so an engine's id is never another model's.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from coordinator.config_replicas import model_of
from coordinator.weights import weight_bytes

if TYPE_CHECKING:
    from coordinator.config import Config, Device, Model

ANY = "any"


class Engine(msgspec.Struct, frozen=True):
    """`model` is the configuration of the model `name`; the engine's ranks are on `devices`, in this order."""

    name: str
    model: Model
    devices: tuple[str, ...]


def engines(config: Config) -> Mapping[str, Engine]:
    """By id: the model's name, `<model>@<number>` for its further replicas, `<model>@<device>` where it has several by
    `device: any`. Raises WeightsError where the folder of a model with `device: any` holds no model."""
    found: dict[str, Engine] = {}
    for name, model in config.models.items():
        if not model.anywhere:
            found[name] = Engine(model_of(name), model, model.devices)
            continue
        places = allowed(config, model, weight_bytes(Path(model.path)))
        for device in places:
            found[name if len(places) == 1 else f"{name}@{device}"] = Engine(name, model, (device,))
    return found


def allowed(config: Config, model: Model, weights: int) -> list[str]:
    """Devices that can hold it alone, with `weights` bytes of weights; in the order in which they are declared."""
    return [device.name for device in config.devices if sum(needs(device, weights, model.kv_cache)) <= device.lent]


def needs(device: Device, weights: int, kv: int) -> tuple[int, int]:
    """Bytes of `device` that weights and KV take: whole chunks, kinds share none."""
    return _whole_chunks(weights, device.chunk), _whole_chunks(kv, device.chunk)


def _whole_chunks(size: int, chunk: int) -> int:
    return -(-size // chunk) * chunk
