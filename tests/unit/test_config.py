"""What a user can write wrong in vnpu.yaml, and the one line that tells how to mend it."""

from __future__ import annotations

from pathlib import Path

import pytest

from coordinator import config
from coordinator.__main__ import settings
from coordinator.admin.keyring import hash_key
from coordinator.config_replicas import models_of
from coordinator.config_roles import pairs
from coordinator.errors import ConfigError
from coordinator.supervise.engine_command import engine_command
from native.daemon.options import DeviceOption
from tests.helpers.model_folder import model_folder

GOOD = """
devices:
  - {id: 0, driver: host, capacity: 2GiB}
models:
  a: {path: ./a, kv_cache: 64MiB}
"""
TWO = """
devices:
  - {id: 0, driver: host, capacity: 2GiB}
  - {id: 1, driver: host, capacity: 2GiB}
models:
  a: {path: ./a, kv_cache: 64MiB}
"""
TWO_ON_NINE = """
  b: {path: b, kv_cache: 1M, port: 9}
  c: {path: a, kv_cache: 1M, port: 9}
"""


@pytest.fixture
def load(tmp_path: Path):
    model_folder(tmp_path / "a")
    model_folder(tmp_path / "b")

    def load(text: str, environ: dict[str, str] | None = None) -> config.Config:
        (tmp_path / "vnpu.yaml").write_text(text)
        return config.load(tmp_path / "vnpu.yaml", environ or {})

    return load


def fault(load, text: str, environ: dict[str, str] | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load(text, environ)
    message = str(caught.value)
    assert "\n" not in message
    assert "vnpu.yaml" in message
    assert caught.value.remedy
    return message


def test_the_smallest_file_is_enough_and_the_only_device_is_taken(load, tmp_path):
    got = load(GOOD)
    assert got.models["a"].devices == ("0",)
    assert got.models["a"].path == str(tmp_path / "a")
    assert got.models["a"].kv_cache == 64 << 20
    assert got.devices[0].capacity == 2 << 30
    assert str(got.gateway.listen) == "127.0.0.1:8080"
    assert got.endpoints == ()


def test_the_issues_example_means_what_it_says(load):
    got = load(
        """
        etcd: [http://etcd:2379]
        node: n1
        devices: [{id: 0, driver: host, capacity: 2GiB, overhead: 16MiB}, {id: 1, capacity: 1073741824}]
        gateway: {listen: "[::1]:8080", max_queue: 7, max_wait: 1m}
        admin: {listen: 0.0.0.0:8081, api_key: "${env.VNPU_ADMIN_KEY}"}
        defaults: {keep_alive: 5m, min_residency: 2s, pin: true}
        host_ram: 8G
        log: {level: debug}
        models:
          org/a:
            path: ./a
            device: [0, 1]
            kv_cache: 64MiB
            engine_args: {dtype: bfloat16, max_model_len: 1024, enforce_eager: true}
            pin: false
            priority: 3
            port: 9001
            restart: never
          b: {path: b, device: 1, kv_cache: 1MiB, keep_alive: null}
        """,
        {"VNPU_ADMIN_KEY": "s3cret"},
    )
    a, b = got.models["org/a"], got.models["b"]
    assert (a.devices, a.pin, a.priority, a.keep_alive, a.min_residency) == (("0", "1"), False, 3, 300.0, 2.0)
    assert (b.devices, b.pin, b.keep_alive, b.port) == (("1",), True, None, None)
    assert (got.gateway.listen.host, got.gateway.max_wait) == ("::1", 60.0)
    assert got.admin.api_key == "s3cret"
    assert "s3cret" not in repr(got)
    assert (got.endpoints, got.host_ram, got.log.level) == (("http://etcd:2379",), 8 << 30, "debug")


def test_the_admin_key_may_come_from_the_environment_alone(load):
    assert load(GOOD, {"VNPU_ADMIN_KEY": "k"}).admin.api_key == "k"


def test_the_gateways_key_may_come_from_the_environment_and_is_kept_as_its_hash(load):
    open_ = GOOD + "gateway: {listen: 0.0.0.0:80}"
    got = load(open_, {"VNPU_API_KEY": "a secret"}).gateway.api_keys
    assert got == {"environment": hash_key("a secret")}
    assert load(open_, {"VNPU_API_KEY": hash_key("a secret")}).gateway.api_keys == got
    own = GOOD + f"gateway: {{api_keys: {{anna: '{hash_key('hers')}'}}}}"
    assert load(own, {"VNPU_API_KEY": "a secret"}).gateway.api_keys == {"anna": hash_key("hers")}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (GOOD + "gatway: {}", ["gatway", "did you mean `gateway`"]),
        (GOOD + "policy: {name: mru}", ["policy.name", "write lru or landlord or cost_aware"]),
        (GOOD + "gateway: {api_keys: [x]}", ["gateway.api_keys", "object"]),
        (GOOD + "gateway: {api_keys: {anna: hunter2}}", ["gateway.api_keys.anna", "vnpu key"]),
        (GOOD.replace("64MiB", "64MiB, aliases: [x y]"), ["models.a.aliases", "x y"]),
        (GOOD.replace("64MiB", "64MiB, aliases: [a]"), ["models.a.aliases", "name of a already"]),
        (GOOD.replace("64MiB", "64MiB, aliases: [x, x]"), ["models.a.aliases", "name of a already"]),
        (GOOD + "gateway: {listen: 0.0.0.0:80}", ["gateway.listen", "no key", "VNPU_API_KEY"]),
        (GOOD + "admin: {roles: {boss: {}}}", ["admin.roles", "boss", "read or operate"]),
        (GOOD + "admin: {roles: {read: {anna: hunter2}}}", ["admin.roles.read.anna", "vnpu key"]),
        (GOOD + "policy: {name: lru, options: {x: 1}}", ["policy.options", "it has no options"]),
        (GOOD + "policy: {options: {horizon: -1}}", ["policy.options", "horizon"]),
        (GOOD.replace("64MiB", "64MiB, load_from: net"), ["models.a.load_from"]),
        (GOOD.replace("64MiB", "64MiB, stop_after: 5m"), ["models.a.stop_after", "add `start: lazy`"]),
        (GOOD.replace("64MiB", "64MiB, start: later"), ["models.a.start", "eager or lazy"]),
        (GOOD.replace("64MiB", "64MiB, sharded_linear: []"), ["models.a.sharded_linear", "names no layers"]),
        (GOOD.replace("64MiB", "64MiB, sharded_linear: [o_proj]"), ["models.a.sharded_linear", "device: [0, 1]"]),
        (GOOD.replace("64MiB", "64MiB, sharded_linear: {layers: [a], prefetch: 17}"), ["sharded_linear.prefetch"]),
        (GOOD.replace("64MiB", "64MiB, async_runner: 2"), ["models.a.async_runner", "bool"]),
        (
            GOOD.replace("64MiB", "64MiB, async_runner: true, engine_args: {speculative_config: {method: ngram}}"),
            ["models.a.async_runner", "speculative decoding", "leave it out"],
        ),
        (
            GOOD.replace("64MiB", "64MiB, engine_args: {async-scheduling: true}"),
            ["models.a.engine_args.async-scheduling", "async_runner"],
        ),
        (GOOD.replace("64MiB", "64MiB, kv_cahe: 1"), ["models.a.kv_cahe", "did you mean `kv_cache`"]),
        (GOOD.replace("64MiB", "64 bananas"), ["models.a.kv_cache", "64 bananas", "write bytes or a unit"]),
        (GOOD.replace("64MiB", "-1"), ["models.a.kv_cache", "-1", "64MiB"]),
        (GOOD.replace(", kv_cache: 64MiB", ""), ["models.a.kv_cache", "is missing", "add `kv_cache:`"]),
        (GOOD.replace("2GiB", "lots"), ["devices[0].capacity", "lots", "2GiB"]),
        (GOOD.replace("host", "hots"), ["devices[0].driver", "hots", "host or ascend or cuda"]),
        (
            GOOD.replace("host", "cuda").replace("id: 0", "id: left"),
            ["devices[0].id", "'left' is no number", "cuda's own number"],
        ),
        (
            GOOD.replace("host", "ascend").replace("64MiB", "64MiB, load_from: auto"),
            ["models.a.load_from", "host driver only", "load_from: disk"],
        ),
        (
            GOOD.replace("host", "ascend").replace("64MiB", "64MiB, engine_args: {load-format: vnpu_netloader}"),
            ["models.a.engine_args.load_format", "host driver only", "leave it out"],
        ),
        (
            GOOD.replace("64MiB", "64MiB, load_from: auto, engine_args: {load_format: dummy}"),
            ["models.a.engine_args.load_format", "set by `load_from`"],
        ),
        (
            GOOD.replace("64MiB", "64MiB, load_from: auto, engine_args: {model-loader-extra-config: 3}"),
            ["models.a.engine_args.model_loader_extra_config", "no mapping"],
        ),
        (
            GOOD.replace(
                "64MiB", "64MiB, load_from: peers, engine_args: {model_loader_extra_config: {LOAD_FROM: disk}}"
            ),
            ["models.a.engine_args.model_loader_extra_config.LOAD_FROM", "set by `load_from`"],
        ),
        (
            TWO.replace("64MiB", "64MiB, device: [0, 1], sharded_linear: {layers: [x], carrier: broadcast}"),
            ["models.a.sharded_linear.carrier", "enforce_eager: true", "carrier: mapped"],
        ),
        (
            TWO.replace("host", "ascend").replace("64MiB", "64MiB, device: [0, 1], sharded_linear: [x]"),
            ["models.a.sharded_linear", "host driver only"],
        ),
        (
            TWO.replace("host", "cuda").replace("64MiB", "64MiB, roles: {prefill: {device: 0}, decode: {device: 1}}"),
            ["models.a.roles", "host driver only"],
        ),
        (GOOD.replace("2GiB", "2GiB, overhead: 2GiB"), ["devices[0].overhead", "nothing of the capacity"]),
        (GOOD.replace("id: 0", "id: 'a:b'"), ["devices[0].id", "a:b"]),
        (GOOD.replace("./a", "./nowhere"), ["models.a.path", "nowhere", "vnpu make-model"]),
        (GOOD.replace("64MiB", "64MiB, device: 3"), ["models.a.device", "3 is not declared", "declared: 0"]),
        (GOOD.replace("64MiB", "64GiB, device: any"), ["models.a", "needs 64 GiB", "device 0"]),
        (GOOD.replace("64MiB", "64MiB, device: any, sharded_linear: [x]"), ["models.a.sharded_linear", "one rank"]),
        (GOOD.replace("64MiB", "64MiB, device: [any, 0]"), ["models.a.device", "any is not declared"]),
        (GOOD.replace("id: 0", "id: any"), ["devices[0].id", "each device that can hold a model"]),
        (GOOD.replace("./a", "./nowhere").replace("64MiB", "64MiB, device: any"), ["models.a.path", "nowhere"]),
        (
            GOOD.replace("models", "  - {id: 1, driver: cuda, capacity: 2GiB}\nmodels").replace(
                "64MiB", "64MiB, device: any"
            ),
            ["models.a.device", "unlike drivers"],
        ),
        (GOOD.replace("64MiB", "64MiB, device: [0, 0]"), ["models.a.device", "twice"]),
        (GOOD.replace("64MiB", "2GiB"), ["models.a:", "2.0 GiB", "KV cache", "capacity"]),
        (GOOD.replace("64MiB", "64MiB, port: 8080"), ["models.a.port", "8080", "gateway.listen"]),
        (GOOD + TWO_ON_NINE, ["models.c.port", "models.b.port"]),
        (GOOD + "admin: {listen: 127.0.0.1:8080}", ["admin.listen", "8080", "gateway.listen"]),
        (GOOD + "admin: {listen: 0.0.0.0:8081}", ["admin.listen", "no key", "admin.api_key"]),
        (GOOD + "admin: {listen: nowhere}", ["admin.listen", "host:port"]),
        (GOOD + "admin: {api_key: 12}", ["admin.api_key", "str"]),
        (GOOD + "gateway: {max_wait: soon}", ["gateway.max_wait", "soon", "500ms"]),
        (GOOD + "gateway: {max_queue: 0}", ["gateway.max_queue", ">= 1"]),
        (GOOD + "gateway: [1]", ["gateway", "a list where a mapping belongs"]),
        (GOOD + "etcd: []", ["etcd", "no endpoint"]),
        (GOOD + "etcd: [etcd:2379]", ["etcd", "http://"]),
        (GOOD + "etcd: enbedded", ["etcd", "enbedded"]),
        (GOOD + "node: a b", ["node", "a b"]),
        (GOOD + "1: {}", ["the key 1", "quote it"]),
        (GOOD + "  a: {path: b, kv_cache: 1M}", ["line", "written twice"]),
        (GOOD.replace("64MiB", "64MiB, engine_args: {port: 1}"), ["models.a.engine_args.port", "use port"]),
        (GOOD.replace("64MiB", "64MiB, engine_args: {--tensor-parallel-size: 2}"), ["use device"]),
        (GOOD.replace("64MiB", "64MiB, restart: sometimes"), ["models.a.restart", "always or never"]),
        (GOOD.replace("64MiB", "64MiB, priority: 5000"), ["models.a.priority", "1000"]),
        (GOOD.replace("  a:", "  a b:"), ["models.a b", "name"]),
        (GOOD.replace("devices:", "devices: 3\nnode:").replace("node:\n  - {", "node: n #"), ["devices", "list"]),
        ("models: {}", ["devices", "no device is declared"]),
        ("devices: [{id: 0, capacity: 1G}]", ["models", "no model is named"]),
        ("devices: [", ["line", "mend the YAML"]),
        (GOOD.replace("./a", "'${env.NOWHERE}'"), ["models.a.path", "NOWHERE", "export"]),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_each_mistake_is_one_line_that_names_key_and_remedy(load, text, words):
    message = fault(load, text)
    assert [word for word in words if word not in message] == [], message


def test_with_two_devices_a_model_must_name_one(load):
    text = GOOD.replace("capacity: 2GiB}", "capacity: 2GiB}\n  - {id: 1, capacity: 2GiB}")
    assert "models.a.device: is missing" in fault(load, text)


def test_two_devices_may_not_share_an_id(load):
    text = GOOD.replace("capacity: 2GiB}", "capacity: 2GiB}\n  - {id: '0', capacity: 2GiB}")
    text = text.replace("64MiB", "64MiB, device: 0")
    assert "devices[1].id: the device 0 is declared twice" in fault(load, text)


def test_a_model_larger_than_its_device_is_refused_and_a_group_shares_its_weights(load, tmp_path):
    model_folder(tmp_path / "big", 3 << 30)
    text = GOOD.replace("./a", "./big").replace("capacity: 2GiB}", "capacity: 2GiB}\n  - {id: 1, capacity: 2GiB}")
    alone = fault(load, text.replace("64MiB", "64MiB, device: 0"))
    assert "models.a: needs 3.1 GiB of device 0 (weights 3.0 GiB, KV cache 64 MiB, in chunks of 16 MiB)" in alone
    assert "1.1 GiB more than it lends (capacity 2.0 GiB, overhead 0 B)" in alone
    assert load(text.replace("64MiB", "64MiB, device: [0, 1]")).models["a"].devices == ("0", "1")


def test_a_model_that_fills_its_device_exactly_is_taken(load, tmp_path):
    model_folder(tmp_path / "exact", (2 << 30) - (64 << 20))
    assert load(GOOD.replace("./a", "./exact"))
    model_folder(tmp_path / "over", (2 << 30) - (64 << 20) + 1)
    assert "needs" in fault(load, GOOD.replace("./a", "./over"))


def test_weights_and_kv_cache_take_whole_chunks_of_their_own(load, tmp_path):
    model_folder(tmp_path / "odd", 31 << 20)
    text = GOOD.replace("./a", "./odd").replace("2GiB", "64MiB").replace("kv_cache: 64MiB", "kv_cache: {kv}")
    assert load(text.replace("{kv}", "32MiB"))
    assert "(weights 32 MiB, KV cache 34 MiB, in chunks of 2.0 MiB), 2.0 MiB more" in fault(
        load, text.replace("{kv}", "33MiB")
    )
    assert load(text.replace("64MiB}", "65MiB, overhead: 1MiB}").replace("{kv}", "32MiB"))
    fault(load, text.replace("64MiB}", "65MiB, overhead: 2MiB}").replace("{kv}", "32MiB"))


@pytest.mark.parametrize("capacity", [32 << 20, (512 << 20) - 1, 512 << 20, 600 << 20, 64 << 30])
@pytest.mark.parametrize("overhead", [0, 1, 100 << 20])
def test_chunks_are_those_of_the_node_daemon(capacity, overhead):
    device = config.Device(id=0, capacity=config.Size(capacity), overhead=config.Size(overhead))
    assert device.chunk == DeviceOption("0", "host", capacity - overhead).chunk


def test_weights_are_counted_by_the_index_not_twice(load, tmp_path):
    folder = model_folder(tmp_path / "indexed", 3 << 30)
    (folder / "part.safetensors").write_bytes(b"x")
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"w": "part.safetensors"}}')
    assert load(GOOD.replace("./a", "./indexed"))
    (folder / "part.safetensors").unlink()
    assert "lacks part.safetensors" in fault(load, GOOD.replace("./a", "./indexed"))


def test_a_folder_that_is_no_model_is_named(load, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "holds no config.json" in fault(load, GOOD.replace("./a", "./empty"))
    (tmp_path / "empty" / "config.json").write_text("{}")
    assert "holds no *.safetensors" in fault(load, GOOD.replace("./a", "./empty"))


def test_a_variable_cannot_inject_yaml(load):
    assert load(GOOD, {}).node == "local"
    assert "node" in fault(load, GOOD + 'node: "${env.N}"', {"N": "x\ndevices: []"}).replace("\\n", "")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: cannot be read: No such file"):
        config.load(tmp_path / "nowhere.yaml", {})


ROLES = """
devices: [{id: 0, capacity: 256MiB}, {id: 1, capacity: 256MiB}]
models:
  a:
    path: a
    kv_cache: 64MiB
    port: 9001
    engine_args: {dtype: float32, block_size: 32}
    roles:
      prefill: {device: 0, kv_cache: 128MiB, engine_args: {max_num_seqs: 2}}
      decode: {device: [0, 1], keep_alive: null}
"""


REPLICAS = """
devices: [{id: 0, capacity: 512MiB}, {id: 1, capacity: 512MiB}, {id: 2, capacity: 512MiB}]
models:
  org/a:
    path: a
    kv_cache: 64MiB
    priority: 3
    aliases: [small]
    replicas: [{device: 0, port: 9001}, {device: [1, 2], kv_cache: 32MiB}]
"""


def test_replicas_are_engines_of_one_model(load):
    got = load(REPLICAS)
    first, second = got.models.values()
    assert (list(got.models), models_of(got.models)) == (["org/a", "org/a@2"], ("org/a",))
    assert (first.devices, first.kv_cache, first.port, first.priority) == (("0",), 64 << 20, 9001, 3)
    assert (second.devices, second.kv_cache, second.port, second.priority) == (("1", "2"), 32 << 20, None, 3)
    told = settings(got, "c1", {}).gateway
    assert (told.models, told.aliases) == (("org/a",), {"small": "org/a"})
    command = engine_command(got, "org/a@2", ["http://e:1"], 9002, "0", "/py", spare=False)
    at = command.argv.index("--served-model-name")
    assert command.argv[at + 1 : at + 3] == ("org/a", "small")
    assert command.env["VNPU_ENGINE_ID"] == "org/a@2"


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("[{device: 0, port: 9001}, {device: [1, 2], kv_cache: 32MiB}]", "[{device: 0}]", ["replicas", "1 engines"]),
        ("device: 0, port", "priority: 1, port", ["models.org/a.replicas[0].priority"]),
        ("device: 0, port", "device: 7, port", ["models.org/a.replicas[0].device", "7 is not declared"]),
        ("device: 0, port", "device: any, port", ["models.org/a.replicas[0].device", "in one place"]),
        ("32MiB", "900MiB", ["models.org/a.replicas[1]", "more than it lends"]),
        ("priority: 3", "port: 9000", ["models.org/a.port", "several engines"]),
        ("priority: 3", "roles: {prefill: {}, decode: {}}", ["replicas", "roles"]),
        ("org/a:", "org/a@2:", ["models.org/a@2: is not a model's name"]),
    ],
)
def test_replicas_that_cannot_work(load, old, new, words):
    message = fault(load, REPLICAS.replace(old, new))
    assert [word for word in words if word not in message] == []


def test_a_model_with_roles_is_two_engines(load):
    got = load(ROLES)
    assert sorted(got.models) == ["a", "a@prefill"]
    decode, prefill = got.models["a"], got.models["a@prefill"]
    assert (decode.devices, decode.kv_cache, decode.port, decode.keep_alive) == (("0", "1"), 64 << 20, 9001, None)
    assert (prefill.devices, prefill.kv_cache, prefill.port, prefill.keep_alive) == (("0",), 128 << 20, None, 300.0)
    assert prefill.engine_args == {"dtype": "float32", "block_size": 32, "max_num_seqs": 2}
    assert pairs(got.models) == {"a": "a@prefill"}
    assert (prefill.roles, set(decode.roles)) == ({}, {"prefill", "decode"})


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("kv_cache: 128MiB", "kv_cache: 192MiB", ["models.a.roles", "device 0 together", "more than it lends"]),
        ("kv_cache: 128MiB", "kv_cache: 512MiB", ["models.a.roles.prefill", "needs"]),
        ("decode: {device: [0, 1], keep_alive: null}", "", ["models.a.roles.decode", "is missing"]),
        ("decode:", "decoed:", ["models.a.roles.decoed", "did you mean `decode`"]),
        ("keep_alive: null", "kep_alive: null", ["models.a.roles.decode.kep_alive", "keep_alive"]),
        ("keep_alive: null", "device: 7", ["written twice"]),
        ("device: [0, 1]", "device: 7", ["models.a.roles.decode.device", "7 is not declared"]),
        ("max_num_seqs: 2", "kv_transfer_config: {}", ["models.a.roles.prefill.engine_args.kv_transfer_config"]),
        ("keep_alive: null", "roles: {}", ["models.a.roles.decode.roles"]),
        ("    kv_cache: 64MiB", "    start: lazy\n    kv_cache: 64MiB", ["roles", "started with the node"]),
        ("device: 0, kv_cache", "device: any, kv_cache", ["models.a.roles.prefill.device", "one engine, in one place"]),
        ("device: [0, 1]", "device: any", ["models.a.roles.decode.device", "one engine, in one place"]),
        ("  a:", "  a@prefill:", ["a@prefill"]),
    ],
)
def test_roles_that_cannot_work(load, old, new, words):
    message = fault(load, ROLES.replace(old, new))
    assert [word for word in words if word not in message] == []
