"""What must hold between the keys of a configuration, and between it and the disk, before anything is started."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from coordinator import hub
from coordinator.admin.keyring import HASH, Role
from coordinator.config_replicas import is_replicated, model_of
from coordinator.config_roles import is_paired, pairs, section_of
from coordinator.document import Document
from coordinator.engine_args import NETLOADER, plain, plainly
from coordinator.errors import ConfigError
from coordinator.placement import ANY, allowed, needs
from coordinator.sizes import show_size
from coordinator.weights import WeightsError, weight_bytes

if TYPE_CHECKING:
    from coordinator.config import Config, Device, Model

Look = Callable[[], None]
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}")
LETTERS = "letters, digits, dot, dash and underscore"

OURS = {
    "model": "path",
    "host": "port",
    "port": "port",
    "kv_cache_memory_bytes": "kv_cache",
    "num_gpu_blocks_override": "kv_cache",
    "gpu_memory_utilization": "kv_cache",
    "tensor_parallel_size": "device",
    "served_model_name": "the model's name",
    "middleware": "nothing: vNPU's gate is the middleware",
    "worker_cls": "nothing: vNPU's platform chooses the worker",
    "async_scheduling": "async_runner",
    "enable_sleep_mode": "nothing: vNPU moves the memory",
}
"""vLLM's flags that vNPU sets itself, and the key that says it here."""


def check(root: Document, config: Config) -> None:
    """Raises ConfigError for the first thing that cannot work; `root` is the document `config` was decoded from."""
    for look in looks(root, config):
        look()


def looks(root: Document, config: Config) -> Iterator[Look]:
    """All that is to be looked at, each by itself; a look raises ConfigError for the first thing it finds."""
    yield from (partial(look, root, config) for look in (_names, _aliases, _etcd, _ports, _admin, _gateway))
    for name, model in config.models.items():
        section = section_of(root.child("models"), name)
        yield partial(_engine_args, section, model)
        yield partial(_sharing, section, model)
        yield partial(_started, section, model, paired=is_paired(name, config.models))
        if is_replicated(name, config.models):
            yield partial(_replica, section, model)
        yield partial(_placement, section, config, model)
        yield partial(_loader, section, model)
        yield partial(_by_address, section, config, model)
        yield partial(_runner, section, config, name)
        yield partial(_fits, section, config, model)
    for name, prefill in pairs(config.models).items():
        section = root.child("models").child(name)
        yield partial(_roles, section, config, config.models[prefill], config.models[name])
        yield partial(_fit_together, section, config, config.models[prefill], config.models[name])


def _names(root: Document, config: Config) -> None:
    if not NAME.fullmatch(config.node):
        raise root.error(f"{config.node!r} is not a node's name", f"write {LETTERS}", "node")
    seen: set[str] = set()
    for section, device in zip(root.child("devices").items(), config.devices, strict=True):
        if not NAME.fullmatch(device.name):
            raise section.error(f"{device.name!r} is not a device id", f"write a number, or {LETTERS}", "id")
        if device.name == ANY:
            raise section.error("means each device that can hold a model", "give it another id", "id")
        if device.name in seen:
            raise section.error(f"the device {device.name} is declared twice", "give each its own id", "id")
        if device.driver != "host" and not device.name.isdecimal():
            raise section.error(f"{device.name!r} is no number", f"write {device.driver}'s own number of it", "id")
        if device.overhead >= device.capacity:
            raise section.error("leaves nothing of the capacity", "make it smaller than `capacity`", "overhead")
        seen.add(device.name)
    for name in root.child("models").mapping():
        if not MODEL_NAME.fullmatch(name):
            raise root.child("models").error("is not a model's name", f"write {LETTERS}, colon and slash", name)


def _aliases(root: Document, config: Config) -> None:
    """A name means one model, whichever engine has registered first."""
    owners = {name: name for name in config.models}
    for name, model in config.models.items():
        section = section_of(root.child("models"), name)
        for alias in model.aliases:
            if not MODEL_NAME.fullmatch(alias):
                raise section.error(f"{alias!r} is not a model's name", f"write {LETTERS}, colon and slash", "aliases")
            if owners.get(alias) == model_of(name) != name:
                continue  # a replica has those of its model
            if alias in owners:
                raise section.error(f"{alias!r} is a name of {owners[alias]} already", "choose another", "aliases")
            owners[alias] = name


def _etcd(root: Document, config: Config) -> None:
    if not isinstance(config.etcd, str) and not config.etcd:
        raise root.error("no endpoint is named", "write `embedded`, or `[http://host:2379]`", "etcd")
    for url in config.endpoints:
        if not url.startswith(("http://", "https://")):
            raise root.error(f"{url!r} is not a URL", "write e.g. http://etcd:2379", "etcd")


def _ports(root: Document, config: Config) -> None:
    """Engines listen on 127.0.0.1 with their own ports; gateway and admin where they are told."""
    listeners = [("gateway.listen", config.gateway.listen.port), ("admin.listen", config.admin.listen.port)]
    engines = [(f"models.{name}.port", model.port) for name, model in config.models.items()]
    taken: dict[int, str] = {}
    for key, port in chain(listeners, engines):
        if not port:
            continue
        if port in taken:
            raise root.error(f"port {port} is already that of {taken[port]}", "give each its own port", key)
        taken[port] = key


def _admin(root: Document, config: Config) -> None:
    for role, keys in config.admin.roles.items():
        if role not in set(Role):
            raise root.error(f"there is no role {role!r}", f"write {' or '.join(Role)}", "admin.roles")
        _keys(root, keys, f"admin.roles.{role}")
    if not config.admin.listen.loopback and not (config.admin.api_key or any(config.admin.roles.values())):
        raise root.error(
            f"{config.admin.listen} is reachable from other machines and no key protects it",
            "set admin.api_key (or VNPU_ADMIN_KEY), or listen on 127.0.0.1",
            "admin.listen",
        )


def _gateway(root: Document, config: Config) -> None:
    _keys(root, config.gateway.api_keys, "gateway.api_keys")
    if not config.gateway.listen.loopback and not config.gateway.api_keys:
        raise root.error(
            f"{config.gateway.listen} is reachable from other machines and no key protects it",
            "set gateway.api_keys (or VNPU_API_KEY), or listen on 127.0.0.1",
            "gateway.listen",
        )


def _keys(root: Document, keys: Mapping[str, str], where: str) -> None:
    for name, hashed in keys.items():
        if not HASH.fullmatch(hashed):  # never shown: it may be the key itself
            raise root.error("is not a key's hash", "write the hash that `vnpu key` prints", f"{where}.{name}")
        if not NAME.fullmatch(name):
            raise root.error(f"{name!r} is not a name", f"write {LETTERS}", where)


def _sharing(section: Document, model: Model) -> None:
    sharing = model.sharing
    if sharing is None:
        return
    if not sharing.layers:
        raise section.error("names no layers", "write e.g. [fused_qkv_a_proj]", "sharded_linear")
    if not isinstance(plainly(model.engine_args).get("additional_config") or {}, dict):
        raise section.error("is no mapping", "write `key: value` lines under it", "engine_args.additional_config")
    if len(model.devices) < 2:
        raise section.error("there is one rank, nobody to share with", "write e.g. device: [0, 1]", "sharded_linear")
    if model.load_from != "disk":
        raise section.error("shared layers are not streamed", "write load_from: disk", "sharded_linear")
    if sharing.carrier == "broadcast" and not plainly(model.engine_args).get("enforce_eager"):
        remedy = "write engine_args: {enforce_eager: true}, or carrier: mapped"
        raise section.error("in a compiled graph nobody waits for broadcast layers", remedy, "sharded_linear.carrier")


def _loader(section: Document, model: Model) -> None:
    """`load_from` goes into vLLM's loader options, beside what the user has there."""
    if model.load_from == "disk":
        return
    given = plainly(model.engine_args)
    if "load_format" in given:
        raise section.error("is set by `load_from`", "leave one of them out", "engine_args.load_format")
    options = given.get("model_loader_extra_config") or {}
    if not isinstance(options, dict):
        raise section.error("is no mapping", "write `KEY: value` lines", "engine_args.model_loader_extra_config")
    if "LOAD_FROM" in options:
        where = "engine_args.model_loader_extra_config.LOAD_FROM"
        raise section.error("is set by `load_from`", "leave it out", where)


def _by_address(section: Document, config: Config, model: Model) -> None:
    """What reads and writes pages as memory of its own process, which a device's are not (engine_patch/joining.py
    refuses it again)."""
    if _on_host(config, model):
        return
    if model.load_from != "disk":
        raise section.error("weights are streamed on the host driver only", "write `load_from: disk`", "load_from")
    if plainly(model.engine_args).get("load_format") == NETLOADER:
        raise section.error("streams on the host driver only", "leave it out", "engine_args.load_format")
    if model.sharing is not None:
        raise section.error("layers are shared on the host driver only, so far", "leave it out", "sharded_linear")


def _roles(section: Document, config: Config, prefill: Model, decode: Model) -> None:
    if not (_on_host(config, prefill) and _on_host(config, decode)):
        raise section.error("KV is pulled on the host driver only, so far", "leave it out", "roles")


def _on_host(config: Config, model: Model) -> bool:
    return all(device.driver == "host" for device in _declared(config, model))


def _engine_args(section: Document, model: Model) -> None:
    for key in model.engine_args:
        if (ours := OURS.get(plain(key))) is not None:
            raise section.error("is set by vNPU itself", f"use {ours} instead", f"engine_args.{key}")


def _runner(section: Document, config: Config, name: str) -> None:
    """What asynchronous steps on the host do not serve (engine_patch/runner.py, which refuses it again)."""
    model = config.models[name]
    drivers = {device.driver for device in config.devices if model.anywhere or device.name in model.devices}
    if not model.async_runner or "host" not in drivers:
        return
    wrong = "models with roles" if is_paired(name, config.models) else ""
    if "speculative_config" in plainly(model.engine_args):
        wrong = "speculative decoding"
    if wrong:
        raise section.error(f"on the host asynchronous steps do not serve {wrong}", "leave it out", "async_runner")


def _placement(section: Document, config: Config, model: Model) -> None:
    declared = [device.name for device in config.devices]
    named = tuple(declared) if model.anywhere else model.devices
    for device in named:
        if device not in declared:
            raise section.error(f"the device {device} is not declared", f"declared: {', '.join(declared)}", "device")
    drivers = {device.driver for device in _declared(config, model)}
    if len(drivers) > 1:
        remedy = "name one device, as `device: 0`" if model.anywhere else "take devices of one kind"
        raise section.error("names devices of unlike drivers", remedy, "device")
    if len(set(model.devices)) != len(model.devices):
        raise section.error("a device is named twice", "a tensor-parallel group has each device once", "device")


def _started(section: Document, model: Model, *, paired: bool) -> None:
    """When the engine is started, and where a model with roles may not leave that open."""
    if model.stop_after is not None and model.start != "lazy":
        raise section.error("an engine that runs with the node is not stopped", "add `start: lazy`", "stop_after")
    if model.start == "lazy" and paired:
        raise section.error("a model with roles is started with the node", "leave `start: lazy` out", "start")
    if model.anywhere and paired:
        raise section.error("each role has one engine, in one place", "name its device, as `device: 0`", "device")


def _replica(section: Document, model: Model) -> None:
    if model.anywhere:
        raise section.error("each replica is in one place", "name its device, or leave `replicas` out", "device")


def _fits(section: Document, config: Config, model: Model) -> None:
    """Weights are split over the ranks; each rank has its own KV cache of `kv_cache` bytes. Kinds share no chunk."""
    if model.anywhere:
        _fits_somewhere(section, config, model)
        return
    for device in _declared(config, model):
        _fits_on(section, device, model)


def _fits_somewhere(section: Document, config: Config, model: Model) -> None:
    places = allowed(config, model, _weights(section, model))
    if not places:
        _fits_on(section, max(config.devices, key=lambda device: device.lent), model)  # says what is missing there
    if len(places) > 1 and model.port:
        raise section.error(
            f"{len(places)} engines cannot share one", "leave it out, or name one device, as `device: 0`", "port"
        )


def _fits_on(section: Document, device: Device, model: Model) -> None:
    weights, kv = _needs(section, device, model)
    if weights + kv > device.lent:
        raise section.error(
            f"needs {show_size(weights + kv)} of device {device.name} (weights {show_size(weights)}, KV cache "
            f"{show_size(kv)}, in chunks of {show_size(device.chunk)}), "
            f"{show_size(weights + kv - device.lent)} more than it lends (capacity {show_size(device.capacity)}, "
            f"overhead {show_size(device.overhead)})",
            "raise the device's capacity, lower kv_cache, or take a smaller model",
        )


def _fit_together(section: Document, config: Config, prefill: Model, decode: Model) -> None:
    """A request needs both groups at once: on one device they would push each other out for every prompt."""
    for device in _declared(config, prefill):
        if device.name not in decode.devices:
            continue
        both = sum(sum(_needs(section, device, model)) for model in (prefill, decode))
        if both > device.lent:
            raise section.error(
                f"prefill and decode need {show_size(both)} of device {device.name} together, "
                f"{show_size(both - device.lent)} more than it lends",
                "give them devices of their own, lower kv_cache, or raise the device's capacity",
                "roles",
            )


def _declared(config: Config, model: Model) -> list[Device]:
    """Its devices, or those it may be on; one that is not declared is named by `_placement`."""
    return [device for device in config.devices if model.anywhere or device.name in model.devices]


def _needs(section: Document, device: Device, model: Model) -> tuple[int, int]:
    """Bytes of weights and of KV on this device, in whole chunks."""
    return needs(device, -(-_weights(section, model) // len(model.devices)), model.kv_cache)


def _weights(section: Document, model: Model) -> int:
    if model.path.startswith(hub.MISSING):
        id_ = model.path.removeprefix(hub.MISSING)
        raise section.error(
            f"there is no folder {id_}, and no whole model of this id in the hub's cache",
            "fetch it: vnpu fetch; or mend the path, or make one: vnpu make-model OUT",
            "path",
        )
    try:
        return weight_bytes(Path(model.path))
    except WeightsError as error:
        raise _unusable(section, error) from None


def _unusable(section: Document, error: WeightsError) -> ConfigError:
    return section.error(error.fault, error.remedy, "path")
