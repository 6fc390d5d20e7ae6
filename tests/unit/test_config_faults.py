"""All faults of a configuration at once: none is missed, none merely follows from another, `load` agrees."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.config import load
from coordinator.config_faults import faults
from coordinator.errors import ConfigError
from tests.helpers.model_folder import model_folder

SOUND = """
devices: [{id: 0, capacity: 1GiB}]
models:
  qwen2.5: {path: a, kv_cache: 64MiB}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory.mktemp("config") / "a").parent


def keys(folder: Path, text: str, **environ: str) -> list[str]:
    file = folder / "vnpu.yaml"
    file.write_text(text)
    found = faults(file, environ)
    assert all(error.file == str(file) and error.fault and error.remedy for error in found)
    return [error.key for error in found]


def test_a_sound_file_has_none(folder: Path) -> None:
    assert keys(folder, SOUND) == []


def test_the_faults_of_all_sections_are_named_at_once(folder: Path) -> None:
    text = """
        nodes: x
        host_ram: lots
        gateway: {listen: here, max_queue: 0, api_keys: [k]}
        policy: {name: lru, options: {fly: 1}}
        devices: [{id: 0, capacity: much, drivers: host}, {driver: gpu}]
        defaults: {keep_alive: soon, pin: maybe}
        models:
          qwen2.5: {path: a, keep_alive: later, device: 0}
          b: {kv_cache: 64MiB, restart: often, device: 0, engine_arg: {}}
    """
    assert keys(folder, text) == [
        *("nodes", "host_ram", "defaults.keep_alive", "defaults.pin"),
        *("gateway.listen", "gateway.max_queue", "gateway.api_keys", "policy.options"),
        *("devices[0].drivers", "devices[0].capacity", "devices[1].id", "devices[1].capacity", "devices[1].driver"),
        *("models.qwen2.5.kv_cache", "models.qwen2.5.keep_alive"),
        *("models.b.engine_arg", "models.b.path", "models.b.restart"),
    ]


def test_what_holds_between_sections_is_looked_at_for_every_model(folder: Path) -> None:
    text = """
        devices: [{id: 0, capacity: 128MiB}]
        gateway: {listen: "0.0.0.0:8081"}
        admin: {listen: "127.0.0.1:8081"}
        models:
          a: {path: a, kv_cache: 1GiB, engine_args: {port: 1}, stop_after: 5m}
          b: {path: nowhere, kv_cache: 1MiB}
          c: {path: a, kv_cache: 1MiB, device: 7}
          d: {path: a, kv_cache: 1GiB, device: any}
    """
    assert keys(folder, text) == [
        *("admin.listen", "gateway.listen", "models.a.engine_args.port", "models.a.stop_after", "models.a"),
        *("models.b.path", "models.c.device", "models.d"),
    ]


def test_every_variable_that_is_not_set_is_named_and_nothing_else(folder: Path) -> None:
    text = SOUND + "admin: {api_key: '${env.ONE}'}\nnode: '${env.TWO}${env.THREE}'\nlog: {level: '${env.ONE}'}\n"
    assert keys(folder, text) == ["admin.api_key", "node", "node", "log.level"]
    assert keys(folder, text, ONE="info", TWO="a", THREE="b") == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("devices: [", [""]),
        ("[]", [""]),
        ("models: 1\ndevices: {}", ["devices", "models"]),
        ("devices: [1]\nmodels: {a: 1}", ["devices[0]", "models.a"]),
        ("", ["devices", "models"]),
    ],
)
def test_a_file_of_another_shape_is_named(folder: Path, text: str, expected: list[str]) -> None:
    assert keys(folder, text) == expected


def test_a_fault_that_both_roles_have_from_their_model_is_named_once(folder: Path) -> None:
    text = """
        devices: [{id: 0, capacity: 1GiB}, {id: 1, capacity: 1GiB}]
        models:
          a: {path: a, kv_cache: 1MiB, priority: high, roles: {prefill: {device: 0, pin: 3}, decode: {device: 1}}}
    """
    assert [key.rpartition(".")[2] for key in keys(folder, text)] == ["priority", "pin"]


JUNK = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 10**12), st.sampled_from(["", "x", "64MiB", "5m", "127.0.0.1:80"])
)
VALUES = st.recursive(
    JUNK, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2)
)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_it_ends_and_finds_something_exactly_where_load_refuses(folder: Path, data: st.DataObject) -> None:
    document = yaml.safe_load(SOUND)
    names = ["etcd", "node", "gateway", "admin", "defaults", "policy", "host_ram", "log", "devices", "models", "other"]
    document |= data.draw(st.dictionaries(st.sampled_from(names), VALUES, max_size=2))
    inner = [
        "path",
        "kv_cache",
        "device",
        "roles",
        "replicas",
        "aliases",
        "start",
        "port",
        "engine_args",
        "sharded_linear",
        "kv_keep",
        "fly",
    ]
    extra = data.draw(st.dictionaries(st.sampled_from(inner), VALUES, max_size=3))
    if isinstance(document["models"], dict) and isinstance(document["models"].get("qwen2.5"), dict):
        document["models"]["qwen2.5"] |= extra
    file = folder / "random.yaml"
    file.write_text(yaml.safe_dump(document))
    found = {str(error) for error in faults(file, {})}
    assert refusal(file) in found or (not found and not refusal(file))


def refusal(file: Path) -> str:
    try:
        load(file, {})
    except ConfigError as error:
        return str(error)
    return ""
