"""The ordinary vLLM command of one model, with vNPU's flags and environment: pure, and all there is to an engine."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence

import msgspec

from coordinator.config import Config, Model
from coordinator.config_roles import is_paired
from coordinator.engine_args import NETLOADER, plainly
from coordinator.placement import Engine, engines

MODULE = "vllm.entrypoints.openai.api_server"
GATE = "engine_patch.gate.Gate"
THREADS = "VLLM_CPU_OMP_THREADS_BIND"
VISIBLE = {"cuda": "CUDA_VISIBLE_DEVICES", "ascend": "ASCEND_RT_VISIBLE_DEVICES"}
"""What makes an engine's rank n the n-th of its devices."""
ASCEND_PLUGINS = ("ascend_kv_connector", "ascend_model", "ascend_model_loader", "ascend_service_profiling")
"""vllm-ascend 0.23's entry points but its platform, before which ours stands: vLLM takes one platform only."""
ASCEND_STREAMS = 1800
"""Of the about 2000 hardware streams of a 910B or 910C those that engines use together; the rest is the system's."""
TRANSFER = json.dumps(
    {
        "kv_connector": "VnpuConnector",
        "kv_connector_module_path": "engine_patch.kv_connector",
        "kv_role": "kv_both",
        "kv_load_failure_policy": "recompute",
    }
)


class Command(msgspec.Struct, frozen=True):
    """`env` is what a plain shell must add to its own."""

    argv: tuple[str, ...]
    env: dict[str, str]

    def shell(self) -> str:
        """Lines to paste into a shell, whichever it is, also after `exec`."""
        lines = ["env", *(f"{name}={shlex.quote(value)}" for name, value in self.env.items())]
        flags: list[str] = []
        for word in self.argv[3:]:
            if word.startswith("--"):
                flags.append(word)
            else:
                flags[-1] += " " + shlex.quote(word)
        return " \\\n  ".join([*lines, shlex.join(self.argv[:3]), *flags])


def engine_command(
    config: Config, name: str, etcd: Sequence[str], port: int, bind: str, python: str, *, spare: bool
) -> Command:
    """`bind` says which cores each rank computes on, as vLLM writes it: `0`, `2-5`, `0|1`; `spare`: there is one on
    which no rank of the node does."""
    engine = engines(config)[name]
    paired = is_paired(engine.name, config.models)
    flags = _flags(engine, port) + (["--kv-transfer-config", TRANSFER] if paired else [])
    argv = [python, "-m", MODULE, *flags, *_engine_args(_arguments(engine.model))]
    return Command(
        tuple(argv), _environment(config, name, engine, etcd) | _of_driver(config, engine, bind, spare=spare)
    )


def _flags(engine: Engine, port: int) -> list[str]:
    model = engine.model
    names = ["--model", model.path, "--served-model-name", engine.name, *model.aliases]
    flags = {
        "--host": "127.0.0.1",
        "--port": str(port),
        "--kv-cache-memory-bytes": str(int(model.kv_cache)),
        "--middleware": GATE,
    }
    if len(engine.devices) > 1:
        flags["--tensor-parallel-size"] = str(len(engine.devices))
    return [*names, *(word for pair in flags.items() for word in pair)]


def _arguments(model: Model) -> dict[str, object]:
    """The user's `engine_args` by vLLM's own names, with what other keys of the model say of them."""
    given = plainly(model.engine_args)
    if model.load_from != "disk":
        given["load_format"] = NETLOADER
        _join(given, "model_loader_extra_config", {"LOAD_FROM": model.load_from})
    if (sharing := model.sharing) is not None:
        keys = {
            "layers": sharing.layers,
            "prefetch": sharing.prefetch,
            "carrier": sharing.carrier,
            "deadline_s": float(sharing.deadline),
        }
        _join(given, "additional_config", {"sharded_linear": keys})
    if model.async_runner is not None:  # else vLLM's platform chooses
        given["async_scheduling"] = model.async_runner
    return given


def _join(given: dict[str, object], key: str, ours: dict[str, object]) -> None:
    """Ours beside what the user has there, which is a mapping (coordinator/config_checks.py)."""
    theirs = given.get(key)
    given[key] = {**theirs, **ours} if isinstance(theirs, dict) else ours


def _engine_args(given: Mapping[str, object]) -> list[str]:
    """`max_model_len: 1024` is `--max-model-len 1024`; true is the flag alone, false its `--no-` form, a list several
    words, a mapping one JSON text, null nothing."""
    words: list[str] = []
    for key, value in given.items():
        flag = key.replace("_", "-")
        if value is None:
            continue
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        elif isinstance(value, list):
            words += [f"--{flag}", *map(_word, value)]
        else:
            words += [f"--{flag}", _word(value)]
    return words


def _word(value: object) -> str:
    return json.dumps(value) if isinstance(value, (dict, list, bool)) else str(value)


def _environment(config: Config, name: str, engine: Engine, etcd: Sequence[str]) -> dict[str, str]:
    model = engine.model
    max_wait = config.gateway.max_wait if model.max_wait is None else model.max_wait
    kept = {} if model.kv_keep is None else {"VNPU_KV_KEEP": str(int(model.kv_keep))}
    ours = {
        "VNPU_ETCD_ENDPOINTS": ",".join(etcd),
        "VNPU_NODE": config.node,
        "VNPU_DEVICE": ",".join(engine.devices),
        "VNPU_ENGINE_ID": name,
        "VNPU_MAX_QUEUE": str(config.gateway.max_queue),
        "VNPU_MAX_WAIT": f"{max_wait:g}",
        "VNPU_LOG_LEVEL": config.log.level.upper(),
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    return kept | ours


def _of_driver(config: Config, engine: Engine, bind: str, *, spare: bool) -> dict[str, str]:
    """What differs with the driver of the engine's devices."""
    driver = config.device(engine.devices[0]).driver
    if driver == "host":
        return {THREADS: bind, "VNPU_ASYNC_RUNNER": _async_runner(engine.model, spare=spare)}
    found = {"VNPU_DRIVER": driver, VISIBLE[driver]: ",".join(engine.devices)}
    if driver == "ascend":
        found["VLLM_PLUGINS"] = ",".join(("vnpu", *ASCEND_PLUGINS))
        found["VNPU_STREAMS"] = str(engine.model.streams or stream_share(config, engine))
    return found


def _async_runner(model: Model, *, spare: bool) -> str:
    """Asynchronous steps gain where EngineCore has a core of its own, and nothing where that core is wanted by others
    (docs/async-runner.md)."""
    if model.async_runner is None:
        return "auto" if spare else "0"
    return "1" if model.async_runner else "0"


def stream_share(config: Config, engine: Engine) -> int:
    """An even share of the streams of the engine's busiest device: a sleeping engine keeps its own."""
    each = [other.devices for other in engines(config).values()]
    return ASCEND_STREAMS // max(sum(device in devices for devices in each) for device in engine.devices)


def cores_by_engine(config: Config, cores: Sequence[int]) -> dict[str, str]:
    """What `bindings` gives to each engine: over all of the configuration, so that an engine gets the same cores
    whichever command starts it, and whatever else runs."""
    known = engines(config)
    bound = bindings([len(engine.devices) for engine in known.values()], cores)
    return dict(zip(known, bound, strict=True))


def spare_core(config: Config, cores: Sequence[int]) -> bool:
    """Whether there is a core on which no rank of the node computes: `bindings` leaves one where there are enough."""
    return len(cores) > sum(len(engine.devices) for engine in engines(config).values())


def bindings(ranks: Sequence[int], cores: Sequence[int]) -> list[str]:
    """Which cores each engine computes on, given its number of ranks. One core at least stays free for the others of
    the node where there is a second; with more ranks than cores they go round.

    vLLM's own choice binds every engine of a machine to the same cores."""
    total = sum(ranks)
    share = max(1, (len(cores) - 1) // total) if total else 1
    blocks = [cores[start : start + share] for start in range(0, len(cores) - share + 1, share)]
    written, n = [], 0
    for count in ranks:
        written.append("|".join(_range(blocks[(n + rank) % len(blocks)]) for rank in range(count)))
        n += count
    return written


def _range(cores: Sequence[int]) -> str:
    return ",".join(map(str, cores))
