"""The vLLM command of a model, word for word, and which cores it computes on."""

from __future__ import annotations

import json

import pytest

from coordinator.config import Config, Device, Duration, Gateway, Model, Size
from coordinator.supervise.engine_command import bindings, engine_command, spare_core
from coordinator.supervise.keeper import Kind, Program
from coordinator.supervise.programs import engine, environment


def config(**model: object) -> Config:
    return Config(
        node="n1",
        devices=[Device(0, Size(1 << 30)), Device(1, Size(1 << 30))],
        gateway=Gateway(max_queue=7, max_wait=Duration(30)),
        models={"org/a": Model(path="/m/a b", kv_cache=Size(64 << 20), **{"device": 0, **model})},
    )


def command(**model: object):
    return engine_command(config(**model), "org/a", ["http://e1:1", "http://e2:2"], 9001, "0", "/py", spare=False)


def test_it_is_the_ordinary_server_with_our_flags_and_environment():
    got = command()
    assert got.argv == (
        *("/py", "-m", "vllm.entrypoints.openai.api_server"),
        *("--model", "/m/a b", "--served-model-name", "org/a", "--host", "127.0.0.1", "--port", "9001"),
        *("--kv-cache-memory-bytes", "67108864", "--middleware", "engine_patch.gate.Gate"),
    )
    assert got.env == {
        "VNPU_ETCD_ENDPOINTS": "http://e1:1,http://e2:2",
        "VNPU_NODE": "n1",
        "VNPU_DEVICE": "0",
        "VNPU_ENGINE_ID": "org/a",
        "VNPU_MAX_QUEUE": "7",
        "VNPU_MAX_WAIT": "30",
        "VNPU_LOG_LEVEL": "INFO",
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "0",
        "VNPU_ASYNC_RUNNER": "0",
    }


def test_aliases_are_served_names_too_and_the_model_is_the_first():
    argv = command(aliases=["x", "y/z"]).argv
    at = argv.index("--served-model-name")
    assert argv[at + 1 : at + 5] == ("org/a", "x", "y/z", "--host")
    assert "--served-model-name org/a x y/z \\\n" in command(aliases=["x", "y/z"]).shell()


def on(driver: str, **model: object) -> Config:
    """Three models on device 2, the first of them on device 3 too."""
    few = {
        name: Model(path="/m/a", kv_cache=Size(64 << 20), **{"device": device, **model})
        for name, device in (("a", [3, 2]), ("b", 2), ("c", 2), ("d", 3))
    }
    devices = [Device(number, Size(1 << 30), driver=driver) for number in (2, 3)]
    return Config(node="n1", devices=devices, models=few)


def test_on_cuda_the_engine_sees_its_own_devices():
    env = engine_command(on("cuda"), "a", ["http://e1:1"], 9001, "0", "/py", spare=False).env
    assert (env["VNPU_DRIVER"], env["VNPU_DEVICE"], env["CUDA_VISIBLE_DEVICES"]) == ("cuda", "3,2", "3,2")
    assert "VLLM_CPU_OMP_THREADS_BIND" not in env
    assert "VLLM_PLUGINS" not in env


def test_on_ascend_our_platform_stands_before_vllm_ascends_and_streams_are_shared():
    env = engine_command(on("ascend"), "a", ["http://e1:1"], 9001, "0", "/py", spare=False).env
    assert (env["VNPU_DRIVER"], env["ASCEND_RT_VISIBLE_DEVICES"], env["VNPU_STREAMS"]) == ("ascend", "3,2", "600")
    plugins = env["VLLM_PLUGINS"].split(",")
    assert "vnpu" in plugins
    assert "ascend" not in plugins
    assert engine_command(on("ascend"), "d", [""], 9001, "0", "/py", spare=False).env["VNPU_STREAMS"] == "900"
    assert (
        engine_command(on("ascend", streams=70), "d", [""], 9001, "0", "/py", spare=False).env["VNPU_STREAMS"] == "70"
    )


def test_groups_of_a_model_with_roles_have_the_connector():
    argv = command().argv
    assert "--kv-transfer-config" not in argv
    both = config()
    both.models["org/a@prefill"] = both.models["org/a"]
    for name in both.models:
        argv = engine_command(both, name, ["http://e1:1"], 9001, "0", "/py", spare=False).argv
        assert argv[argv.index("--served-model-name") + 1] == name
        told = json.loads(argv[argv.index("--kv-transfer-config") + 1])
        assert told["kv_connector_module_path"] == "engine_patch.kv_connector"
        assert told["kv_load_failure_policy"] == "recompute"


@pytest.mark.parametrize("source", ["auto", "peers"])
def test_weights_from_other_engines(source: str):
    argv = command(load_from=source).argv
    assert argv[argv.index("--load-format") + 1] == "vnpu_netloader"
    assert argv[argv.index("--model-loader-extra-config") + 1] == f'{{"LOAD_FROM": "{source}"}}'


def test_load_from_goes_beside_the_users_loader_options():
    argv = command(load_from="peers", engine_args={"model-loader-extra-config": {"RATE_LIMIT": 1}}).argv
    assert argv.count("--model-loader-extra-config") == 1
    options = json.loads(argv[argv.index("--model-loader-extra-config") + 1])
    assert options == {"RATE_LIMIT": 1, "LOAD_FROM": "peers"}


def test_shared_layers_go_beside_what_the_user_has_in_additional_config():
    argv = command(
        device=[0, 1],
        sharded_linear=["o_proj"],
        engine_args={"additional-config": {"theirs": 1}, "seed": 7},
    ).argv
    assert argv.count("--additional-config") == 1
    assert json.loads(argv[argv.index("--additional-config") + 1]) == {
        "theirs": 1,
        "sharded_linear": {"layers": ["o_proj"], "prefetch": 3, "carrier": "auto", "deadline_s": 30.0},
    }
    assert argv[argv.index("--seed") + 1] == "7"


@pytest.mark.parametrize(
    ("asked", "flags"), [(None, []), (True, ["--async-scheduling"]), (False, ["--no-async-scheduling"])]
)
def test_asynchronous_steps_are_vllms_flag_and_on_the_host_our_platforms_word(asked: bool | None, flags: list[str]):
    got = command(async_runner=asked)
    assert [word for word in got.argv if "async" in word] == flags
    assert got.env["VNPU_ASYNC_RUNNER"] == ("1" if asked else "0")
    given = config(async_runner=asked)
    with_spare = engine_command(given, "org/a", ["http://e1:1"], 9001, "0", "/py", spare=True)
    assert with_spare.env["VNPU_ASYNC_RUNNER"] == {None: "auto", True: "1", False: "0"}[asked]
    on_cuda = engine_command(on("cuda", async_runner=asked), "a", ["http://e1:1"], 9001, "0", "/py", spare=False)
    assert [word for word in on_cuda.argv if "async" in word] == flags
    assert "VNPU_ASYNC_RUNNER" not in on_cuda.env


def test_what_may_be_kept_is_handed_on():
    assert command(kv_keep=Size(0)).env["VNPU_KV_KEEP"] == "0"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"max_model_len": 1024}, ["--max-model-len", "1024"]),
        ({"--max-model-len": 1024}, ["--max-model-len", "1024"]),
        ({"enforce_eager": True}, ["--enforce-eager"]),
        ({"enable_prefix_caching": False}, ["--no-enable-prefix-caching"]),
        ({"seed": None}, []),
        ({"compilation_config": {"mode": 0}}, ["--compilation-config", '{"mode": 0}']),
        ({"lora_modules": ["a=b", "c=d"]}, ["--lora-modules", "a=b", "c=d"]),
        ({"swap": 0.5, "dtype": "bfloat16"}, ["--swap", "0.5", "--dtype", "bfloat16"]),
    ],
)
def test_engine_args_become_flags(given, words):
    assert list(command(engine_args=given).argv[15:]) == words


def test_a_group_is_a_tensor_parallel_engine():
    got = command(device=[1, 0])
    assert got.argv[-2:] == ("--tensor-parallel-size", "2")
    assert got.env["VNPU_DEVICE"] == "1,0"


def test_a_models_own_patience_goes_before_the_gateways():
    assert command(max_wait=Duration(2.5)).env["VNPU_MAX_WAIT"] == "2.5"


def test_the_printed_command_can_be_pasted():
    text = command(engine_args={"enforce_eager": True}).shell()
    lines = text.split(" \\\n  ")
    assert lines[:2] == ["env", "VNPU_ETCD_ENDPOINTS=http://e1:1,http://e2:2"]
    assert "/py -m vllm.entrypoints.openai.api_server" in lines
    assert "--model '/m/a b'" in lines
    assert lines[-1] == "--enforce-eager"


def test_a_users_own_core_binding_holds_and_the_rest_is_ours():
    program = engine(config(restart="never"), "org/a", ["http://e:1"], 9001, "0", "/py", spare=False)
    seen = environment(program, {"VLLM_CPU_OMP_THREADS_BIND": "3", "VNPU_NODE": "other", "HOME": "/h"})
    assert (seen["VLLM_CPU_OMP_THREADS_BIND"], seen["VNPU_NODE"], seen["HOME"]) == ("3", "n1", "/h")
    assert (program.url, program.restart) == ("http://127.0.0.1:9001", False)


@pytest.mark.parametrize(
    ("ranks", "cores", "bound"),
    [
        ([1, 1, 1], [0, 1], ["0", "1", "0"]),
        ([1], [0, 1], ["0"]),
        ([2], [4, 5], ["4|5"]),
        ([1, 2], [0], ["0", "0|0"]),
        ([1, 1], list(range(8)), ["0,1,2", "3,4,5"]),
        ([2, 1], list(range(8)), ["0,1|2,3", "4,5"]),
        ([], [0], []),
    ],
)
def test_engines_go_round_the_cores_and_leave_one_free_where_there_are_more(ranks, cores, bound):
    assert bindings(ranks, cores) == bound


def test_only_the_coordinator_sees_the_keys_of_clients():
    given = {"VNPU_API_KEY": "a", "VNPU_ADMIN_KEY": "b", "HOME": "/h"}
    seen = {
        kind: set(environment(Program("x", kind, ("x",), {"OWN": "1"}), given))
        for kind in (Kind.COORDINATOR, Kind.DAEMON, Kind.ENGINE)
    }
    assert seen[Kind.COORDINATOR] == {*given, "OWN"}
    assert seen[Kind.DAEMON] == seen[Kind.ENGINE] == {"HOME", "OWN"}


@pytest.mark.parametrize(("cores", "spare"), [([0], False), ([0, 1], False), ([0, 1, 2], True)])
def test_a_core_is_spare_where_no_rank_of_the_node_computes_on_it(cores: list[int], spare: bool):
    assert spare_core(config(device=[0, 1]), cores) is spare
