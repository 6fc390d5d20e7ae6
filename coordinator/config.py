"""`vnpu.yaml`: what a node is made of. One file, decoded by msgspec, checked whole before anything is started.

`load` is the way in. The structs below are the schema; docs/configuration.md documents every key of them, and a test
holds the two together. Keys that later versions bring to life have their names already (`LATER`) and are refused as
not supported yet.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from coordinator import config_checks as checks
from coordinator import config_replicas, document
from coordinator.admin.keyring import hash_key
from coordinator.config_roles import expand
from coordinator.core.policies.registry import make
from coordinator.document import Document, Struct
from coordinator.errors import ConfigError
from coordinator.hub import located
from coordinator.placement import ANY
from coordinator.sizes import parse_duration, parse_size


class Size(int):
    """Bytes, written `2GiB`."""


class Duration(float):
    """Seconds, written `5m`."""


class Listen(str):
    """Where a server listens, written `host:port`; port 0 takes a free one."""

    @property
    def host(self) -> str:
        return self.rpartition(":")[0].removeprefix("[").removesuffix("]")

    @property
    def port(self) -> int:
        return int(self.rpartition(":")[2])

    @property
    def url(self) -> str:
        return f"http://{self}"

    @property
    def loopback(self) -> bool:
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


ENVIRONMENT = "environment"
"""Who holds the key that VNPU_API_KEY gives."""
SMALL_CHUNK, LARGE_CHUNK, LARGE_DEVICE = 2 << 20, 16 << 20, 512 << 20
Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]
Priority = Annotated[int, msgspec.Meta(ge=-1000, le=1000)]
Drivers = Literal["host", "ascend", "cuda"]


class Device(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One accelerator of this node. `overhead` is what the runtime takes of `capacity` and cannot give back."""

    id: str | int
    capacity: Size
    driver: Drivers = "host"
    overhead: Size = Size(0)

    @property
    def name(self) -> str:
        return str(self.id)

    @property
    def lent(self) -> int:
        """Bytes that engines may hold together."""
        return (self.capacity - self.overhead) // self.chunk * self.chunk

    @property
    def chunk(self) -> int:
        """Bytes that the node daemon lends at once; its `DeviceOption.chunk` decides, a test holds the two together."""
        return LARGE_CHUNK if self.capacity - self.overhead >= LARGE_DEVICE else SMALL_CHUNK


class Gateway(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The OpenAI API. `api_keys`: hashes of clients' keys by the holder's name; without any it listens on
    loopback only. A model's queue holds `max_queue` requests, each at most `max_wait` seconds."""

    listen: Listen = Listen("127.0.0.1:8080")
    api_keys: dict[str, str] = {}
    max_queue: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 512
    max_wait: Duration = Duration(300)


class Admin(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The operators' API, on its own port. `roles`: hashes of keys, by role and by the holder's name. Without any key
    it listens on loopback only."""

    listen: Listen = Listen("127.0.0.1:8081")
    api_key: str = ""
    roles: dict[str, dict[str, str]] = {}

    def __repr__(self) -> str:
        return f"Admin(listen={self.listen}, api_key={'set' if self.api_key else 'none'})"


class Defaults(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What holds for every model that does not say otherwise. `keep_alive` None: stays until its memory is
    needed. `max_wait` None: the gateway's. `ttft_objective` None: no wish."""

    keep_alive: Duration | None = Duration(300)
    min_residency: Duration = Duration(2)
    max_wait: Duration | None = None
    priority: Priority = 0
    pin: bool = False
    ttft_objective: Duration | None = None


class ShardedLinear(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Linear layers that the ranks of one engine hold once between them; engine_patch/sharded_linear/options.py says
    what the keys mean."""

    layers: Annotated[list[str], msgspec.Meta(min_length=1)]
    prefetch: Annotated[int, msgspec.Meta(ge=0, le=16)] = 3
    carrier: Literal["auto", "mapped", "broadcast"] = "auto"
    deadline: Duration = Duration(30)


class Model(Defaults, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One model, served by one engine on `devices` (several: a tensor-parallel group, ranks in this order), or with
    `device: any` by one on each device that can hold it. `kv_keep` None: all KV that is needed is kept across a switch.
    `streams` None: an even share of an Ascend device's. `start: lazy`: its process runs only when it is needed, and
    `stop_after` so long without work it ends. `async_runner` None: as is best where it was measured."""

    path: str
    kv_cache: Size
    kv_keep: Size | None = None
    streams: Annotated[int, msgspec.Meta(ge=1, le=65536)] | None = None
    device: int | str | list[int | str] = ""
    engine_args: dict[str, Any] = {}
    port: Port | None = None
    aliases: list[str] = []
    restart: Literal["always", "never"] = "always"
    load_from: Literal["disk", "auto", "peers"] = "disk"
    start: Literal["eager", "lazy"] = "eager"
    stop_after: Duration | None = None
    roles: dict[str, dict[str, Any]] = {}
    replicas: list[dict[str, Any]] = []
    sharded_linear: ShardedLinear | list[str] | None = None
    async_runner: bool | None = None

    @property
    def sharing(self) -> ShardedLinear | None:
        """`sharded_linear`, where a list alone names layers."""
        listed = self.sharded_linear
        return ShardedLinear(listed) if isinstance(listed, list) else listed

    @property
    def anywhere(self) -> bool:
        """Whether it has an engine on each device that can hold it; `coordinator.placement` says which those are."""
        return self.devices == (ANY,)

    @property
    def devices(self) -> tuple[str, ...]:
        """Device ids; one rank of the engine on each. `("any",)`: see `anywhere`."""
        listed = self.device if isinstance(self.device, list) else [self.device]
        return tuple(str(device) for device in listed)


class Policy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who leaves when memory is needed: a policy's name and options. `shadow`: another one that is asked too; what it
    would have done stands in every decision. `predict`: room left over beside a restore is used for who is likely to
    come next."""

    name: Literal["lru", "landlord", "cost_aware"] = "cost_aware"
    options: dict[str, Any] = {}
    shadow: Literal["lru", "landlord", "cost_aware"] | None = None
    predict: bool = True


class Log(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How much the processes say in their log files."""

    level: Literal["debug", "info", "warning", "error"] = "info"


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A whole node. `models` have `defaults` merged in, `path` absolute (or `hub.MISSING` and an id) and `device`
    filled in; `host_ram` None: no limit."""

    devices: list[Device]
    models: dict[str, Model]
    etcd: Literal["embedded"] | list[str] = "embedded"
    node: str = "local"
    gateway: Gateway = Gateway()
    admin: Admin = Admin()
    defaults: Defaults = Defaults()
    policy: Policy = Policy()
    host_ram: Size | None = None
    log: Log = Log()

    @property
    def endpoints(self) -> tuple[str, ...]:
        """The user's etcd; empty: `vnpu up` starts its own."""
        return () if isinstance(self.etcd, str) else tuple(self.etcd)

    def device(self, name: str) -> Device:
        return next(device for device in self.devices if device.name == name)


REPLICAS_OWN = ("device", "kv_cache", "kv_keep", "streams", "engine_args", "port", "load_from")
"""What one engine of a model may have that the others have not."""
LATER: Mapping[str, Mapping[str, str]] = {
    "": {},
    "policy": {},
    "devices": {},
    "gateway": {},
    "admin": {},
    "log": {},
    "defaults": {},
    "models": {},
}
"""Keys whose names are settled and whose meaning is not there yet, by section."""


def load(path: Path, environ: Mapping[str, str]) -> Config:
    """The configuration in `path`, checked against itself and against the model folders it names.

    Raises ConfigError with one line that names file, key and remedy."""
    root = document.read(path, environ)
    config = decoded(root, environ, path.parent)
    checks.check(root, config)
    return config


def decoded(root: Document, environ: Mapping[str, str], folder: Path) -> Config:
    """Every section by itself, not yet checked against each other. Paths count from `folder`. Raises ConfigError."""
    root.known(Config.__struct_fields__, LATER[""])
    defaults = root.child("defaults")
    values: dict[str, object] = {**root.mapping(), "defaults": _section(root, "defaults", Defaults)}
    values["gateway"] = _with_api_key(_section(root, "gateway", Gateway), environ)
    values["admin"] = _with_key(_section(root, "admin", Admin), environ)
    values["policy"] = _policy(root)
    values["log"] = _section(root, "log", Log)
    values["devices"] = devices = _devices(root)
    locate = partial(located, folder=folder, environ=environ)
    values["models"] = {
        name: model_of(section, defaults.mapping(), devices, locate)
        for model, whole in named_models(root).items()
        for name, section in engine_sections(model, whole).items()
    }
    return Document(root.file, values).decode(Config, hook)


def _section(root: Document, name: str, type_: type[Struct]) -> Struct:
    return root.child(name).decode(type_, hook, LATER[name])


def _policy(root: Document) -> Policy:
    policy = _section(root, "policy", Policy)
    check_options(root.child("policy"), policy)
    return policy


def check_options(section: Document, policy: Policy) -> None:
    """Raises ConfigError for options that this policy does not have."""
    try:
        make(policy.name, policy.options)
    except ConfigError as error:
        raise section.error(str(error), "docs/scheduling.md has each policy's options", "options") from None


def _with_key(admin: Admin, environ: Mapping[str, str]) -> Admin:
    if admin.api_key:
        return admin
    return msgspec.structs.replace(admin, api_key=environ.get("VNPU_ADMIN_KEY", ""))


def _with_api_key(gateway: Gateway, environ: Mapping[str, str]) -> Gateway:
    given = environ.get("VNPU_API_KEY", "")
    if gateway.api_keys or not given:
        return gateway
    return msgspec.structs.replace(gateway, api_keys={ENVIRONMENT: hash_key(given)})


def _devices(root: Document) -> list[Device]:
    return [section.decode(Device, hook, LATER["devices"]) for section in device_sections(root)]


def device_sections(root: Document) -> list[Document]:
    """Raises ConfigError where there is none."""
    if not root.mapping().get("devices"):
        raise root.error("no device is declared", "add `devices: [{id: 0, driver: host, capacity: 2GiB}]`", "devices")
    return root.child("devices").items()


def named_models(root: Document) -> dict[str, Document]:
    """By the names that the file has. Raises ConfigError where there is none."""
    models = root.child("models")
    if not models.mapping():
        raise root.error("no model is named", "add a model: a name, and under it path: and kv_cache:", "models")
    return {name: models.child(name) for name in models.mapping()}


def engine_sections(model: str, whole: Document) -> dict[str, Document]:
    """The sections of its engines, by their names. Raises ConfigError."""
    if not whole.mapping().get(config_replicas.KEY):
        return expand(model, whole, Model.__struct_fields__, LATER["models"])
    whole.known(Model.__struct_fields__, LATER["models"])
    return config_replicas.expand(model, whole, REPLICAS_OWN)


def model_of(
    section: Document, defaults: Mapping[str, object], devices: list[Device], locate: Callable[[str], str]
) -> Model:
    """One engine's model, `defaults` merged in; `locate` says which folder a path means. Raises ConfigError."""
    section.known(Model.__struct_fields__, LATER["models"])
    merged = Document(section.file, {**defaults, **section.mapping()}, section.path)
    model = merged.decode(Model, hook, LATER["models"])
    device = model.device if model.device not in ("", []) else _only(section, devices)
    return msgspec.structs.replace(model, path=locate(model.path), device=device)


def _only(section: Document, devices: list[Device]) -> str:
    if len(devices) != 1:
        raise section.error("is missing and there are several devices", "name one, as `device: 0`", "device")
    return devices[0].name


def hook(type_: type, value: object) -> object:
    """What msgspec does not know: sizes, durations, `host:port`. ValueErrors become ConfigErrors in `decode`."""
    if type_ is Size and isinstance(value, (str, int)) and not isinstance(value, bool):
        return Size(parse_size(value))
    if type_ is Duration and isinstance(value, (str, int, float)) and not isinstance(value, bool):
        return Duration(parse_duration(value))
    if type_ is Listen and isinstance(value, str):
        return _listen(value)
    wanted = {Size: "a size, as 64MiB", Duration: "a duration, as 5m", Listen: "host:port, as 127.0.0.1:8080"}
    raise ValueError(f"{value!r} is not {wanted[type_]}")


def _listen(text: str) -> Listen:
    host, _, port = text.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    if not bare or (":" in bare) != (bare != host) or not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65535:
        raise ValueError(f"{text!r} is not host:port; write e.g. 127.0.0.1:8080")
    return Listen(text)
