"""The fleet that is simulated: devices, models, bytes, bandwidths; one YAML file, checked whole."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated

import msgspec

from coordinator import document
from coordinator.core.settings import Settings
from coordinator.document import Document
from coordinator.sizes import parse_duration, parse_size, show_size


class Size(int):
    """Bytes, written `2GiB`."""


class Duration(float):
    """Seconds, written `500ms`."""


UNMAP_S = 0.005
NOTHING: Mapping[str, int] = MappingProxyType({})
Rate = Annotated[float, msgspec.Meta(gt=0, le=1e12)]


class Device(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`id` is `<node>/<device>`. `restore` and `offload`: bytes a second, each way."""

    id: str
    capacity: Size
    restore: Size = Size(20 * 10**9)
    offload: Size = Size(20 * 10**9)
    chunk: Size = Size(2 << 20)


class Model(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One model with one engine on `devices`. `weights` and `kv` are bytes on each of them; `fixed` is what a restore
    takes beside its bytes, `leave` an offload. `saved`: of its KV, what is in use and moves (default: all). `prefill`
    tokens a second, one prompt at a time, each after `first`; `decode` seconds a token, for all that run together.
    The others are settings, as in `vnpu.yaml`."""

    weights: Size
    devices: list[str] = []
    kv: Size = Size(0)
    saved: Size | None = None
    fixed: Duration = Duration(0.05)
    leave: Duration = Duration(UNMAP_S)
    first: Duration = Duration(0)
    prefill: Rate = 8000.0
    decode: Duration = Duration(0.02)
    keep_alive: Duration | None = None
    min_residency: Duration = Duration(2)
    max_wait: Duration = Duration(300)
    priority: Annotated[int, msgspec.Meta(ge=-1000, le=1000)] = 0
    pin: bool = False
    ttft_objective: Duration | None = None

    @property
    def settings(self) -> Settings:
        return Settings(
            pin=self.pin,
            priority=self.priority,
            keep_alive=self.keep_alive,
            min_residency=self.min_residency,
            max_wait=self.max_wait,
            ttft_objective=self.ttft_objective,
        )


class Fleet(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What there is."""

    devices: list[Device]
    models: dict[str, Model]

    def device(self, id_: str) -> Device:
        return next(device for device in self.devices if device.id == id_)

    def pages(self, model: str, device: str) -> int:
        """Bytes that `model` takes of `device`: weights and KV in whole chunks."""
        return sum(self.chunks(model, device)) * self.device(device).chunk

    def chunks(self, model: str, device: str) -> tuple[int, int]:
        """Chunks that `model` takes of `device`: for weights, for KV."""
        chunk, of = self.device(device).chunk, self.models[model]
        return -(-of.weights // chunk), -(-of.kv // chunk)

    def restore_s(self, model: str, still: Mapping[str, int] = NOTHING) -> float:
        """Seconds of a restore, all ranks at once. `still`: by device, bytes of weights that need no copy."""
        of = self.models[model]
        kv = {
            d: of.saved if of.saved is not None else self.chunks(model, d)[1] * self.device(d).chunk for d in of.devices
        }
        weights = {d: self.chunks(model, d)[0] * self.device(d).chunk - still.get(d, 0) for d in of.devices}
        return of.fixed + max((weights[d] + kv[d]) / self.device(d).restore for d in of.devices)

    def offload_s(self, model: str) -> float:
        """Seconds of an offload: weights are clean and only unmapped, KV is saved."""
        of = self.models[model]
        saved = of.saved if of.saved is not None else of.kv
        return of.leave + max(saved / self.device(d).offload for d in of.devices)


def load(path: Path, environ: Mapping[str, str]) -> Fleet:
    """The fleet in `path`. Raises ConfigError that names file, key and remedy."""
    root = document.read(path, environ)
    root.known(Fleet.__struct_fields__)
    devices = [section.decode(Device, _hook) for section in root.child("devices").items()]
    if not devices:
        raise root.error("no device is declared", "add `devices: [{id: n/0, capacity: 64GiB}]`", "devices")
    models = root.child("models")
    if not models.mapping():
        raise root.error("no model is named", "add a model: a name, and under it weights:", "models")
    fleet = Fleet(devices, {name: _model(models.child(name), devices) for name in models.mapping()})
    for name in fleet.models:
        _fits(models.child(name), fleet, name)
    return fleet


def _model(section: Document, devices: list[Device]) -> Model:
    model = section.decode(Model, _hook)
    if model.devices:
        return model
    if len(devices) != 1:
        raise section.error("is missing and there are several devices", "name them, as `devices: [n/0]`", "devices")
    return msgspec.structs.replace(model, devices=[devices[0].id])


def _fits(section: Document, fleet: Fleet, name: str) -> None:
    known = {device.id: device for device in fleet.devices}
    for id_ in fleet.models[name].devices:
        if id_ not in known:
            raise section.error(f"no device {id_!r} is declared", f"declared: {', '.join(known)}", "devices")
        need, has = fleet.pages(name, id_), known[id_].capacity
        if need > has:
            raise section.error(
                f"needs {show_size(need)} of {id_}, which has {show_size(has)}", "give it less", "weights"
            )


def _hook(type_: type, value: object) -> object:
    if type_ is Size and isinstance(value, (str, int)) and not isinstance(value, bool):
        return Size(parse_size(value))
    if type_ is Duration and isinstance(value, (str, int, float)) and not isinstance(value, bool):
        return Duration(parse_duration(value))
    wanted = {Size: "a size, as 64MiB", Duration: "a duration, as 50ms"}
    raise ValueError(f"{value!r} is not {wanted[type_]}")
