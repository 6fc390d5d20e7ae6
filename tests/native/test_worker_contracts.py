"""What our workers and platforms rely on of vLLM's, vllm-ascend's and torch's, held against their sources: on devices
nothing of it has run. vLLM 0.32 is the installed one; the wheels of vllm-ascend 0.23 and torch-npu are unpacked, and,
with the `system` tests, those of vLLM 0.23 and 0.33 too. None is imported."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest

from coordinator.supervise.engine_command import ASCEND_PLUGINS, VISIBLE
from engine_patch import core_calls, device_pools
from tests.helpers.vendor_headers import ROOT, torch_npu, vllm_023, vllm_033, vllm_ascend, vllm_ascend_entry_points

pytestmark = pytest.mark.timeout(1800)  # of which nearly all is for what is fetched

OURS = ROOT / "engine_patch"
Fetch = Callable[[], Path]


@cache
def installed(package: str) -> Path:
    spec = find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


@cache
def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text())


def class_of(file: Path, name: str) -> ast.ClassDef:
    return next(node for node in ast.walk(tree(file)) if isinstance(node, ast.ClassDef) and node.name == name)


def arguments(node: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    """Names, without `self` or `cls`."""
    names = [one.arg for one in (*node.args.args, *node.args.kwonlyargs)]
    return names[1:] if names[:1] in (["self"], ["cls"]) else names


def methods(file: Path, name: str) -> dict[str, list[str]]:
    """Of a class: the names of its methods, and of their arguments."""
    body = class_of(file, name).body
    return {one.name: arguments(one) for one in body if isinstance(one, (ast.FunctionDef, ast.AsyncFunctionDef))}


def functions(file: Path) -> dict[str, list[str]]:
    return {one.name: arguments(one) for one in tree(file).body if isinstance(one, ast.FunctionDef)}


def attributes(node: ast.AST) -> set[str]:
    """Names that are assigned to `self`, or declared in the class."""

    def found() -> Iterator[str]:
        for one in ast.walk(node):
            if isinstance(one, ast.Attribute) and isinstance(one.ctx, ast.Store) and ast.unparse(one.value) == "self":
                yield one.attr

    return set(found())


def source(file: Path) -> str:
    return " ".join(file.read_text().split())


# ---- workers

GPU = installed("vllm") / "v1/worker/gpu_worker.py"
CPU = installed("vllm") / "v1/worker/cpu_worker.py"


def theirs(kind: str) -> tuple[Path, str]:
    known = {"cuda": (GPU, "Worker"), "cpu": (CPU, "CPUWorker")}
    return known[kind] if kind in known else (vllm_ascend() / "worker/worker.py", "NPUWorker")


@pytest.mark.parametrize("kind", ["cpu", "cuda", "npu"])
def test_the_worker_that_ours_stands_before_has_what_is_called_above_it(kind: str) -> None:
    file, name = theirs(kind)
    above = methods(file, name)
    if kind == "cpu":
        above = methods(GPU, "Worker") | above  # its base
        assert [ast.unparse(base) for base in class_of(file, name).bases] == ["Worker"]
    wrapped = set(re.findall(r"super\(\)\.(\w+)\(", ast.unparse(class_of(OURS / "worker.py", "VnpuWorker"))))
    assert wrapped == {"init_device", "load_model", "initialize_from_config", "execute_model", "sample_tokens"}
    assert above["init_device"] == []
    assert above["initialize_from_config"] == ["kv_cache_config"]
    assert above["execute_model"] == ["scheduler_output"]
    assert above["sample_tokens"] == ["grammar_output"]
    assert set(above["load_model"]) <= {"load_dummy_weights"}
    assert f"class Vnpu{kind.upper()}Worker(VnpuWorker, {name})" in source(OURS / f"{kind}_worker.py")


@pytest.mark.parametrize("kind", ["cpu", "cuda", "npu"])
def test_no_name_of_ours_hides_one_of_theirs(kind: str) -> None:
    file, name = theirs(kind)
    base = installed("vllm") / "v1/worker/worker_base.py"
    ours = class_of(OURS / "worker.py", "VnpuWorker")
    mine = {one.name for one in ours.body if isinstance(one, ast.FunctionDef)} | attributes(ours)
    above = set(methods(file, name)) | attributes(class_of(file, name))
    if kind == "cpu":
        above |= set(methods(GPU, "Worker")) | attributes(class_of(GPU, "Worker"))
    above |= set(methods(base, "WorkerBase")) | attributes(class_of(base, "WorkerBase"))
    shared = {"init_device", "load_model", "initialize_from_config", "execute_model", "sample_tokens"}
    assert mine & above == shared
    assert {"rank", "local_rank", "vllm_config", "model_config"} <= attributes(class_of(base, "WorkerBase"))


def test_rank_n_of_vllm_works_on_the_nth_visible_device() -> None:
    """`VnpuWorker.vnpu_ordinal` is `local_rank`, and `vnpu engine` makes only the engine's devices visible."""
    assert 'torch.device(f"npu:{self.local_rank}")' in source(vllm_ascend() / "worker/worker.py")
    assert "logical_device_id_to_visible_device_id(self.local_rank)" in source(GPU)
    assert f'device_control_env_var: str = "{VISIBLE["ascend"]}"' in source(vllm_ascend() / "platform.py")
    assert f'device_control_env_var: str = "{VISIBLE["cuda"]}"' in source(installed("vllm") / "platforms/cuda.py")


@pytest.mark.parametrize("kind", ["cuda", "npu"])
def test_with_a_given_kv_cache_no_memory_is_measured(kind: str) -> None:
    """The daemon holds the device: what is free there says nothing."""
    text = source(theirs(kind)[0])
    assert "if kv_cache_memory_bytes := self.cache_config.kv_cache_memory_bytes:" in text
    assert "gpu_memory_utilization" in (text + source(installed("vllm") / "v1/worker/utils.py"))


def test_the_kv_caches_of_vllm_ascend_are_tensors_or_tuples_of_them() -> None:
    text = source(vllm_ascend() / "worker/model_runner_v1.py")
    assert (
        "bind_kv_cache(kv_caches, self.compilation_config.static_forward_context, self.kv_caches, num_attn_module)"
        in text
    )
    assert "kv_caches[layer_name] = (k_cache, v_cache)" in text


# ---- steps in flight (docs/async-runner.md)


def hold_steps_in_flight(vllm: Path) -> None:
    """What `engine_patch.flight` and `core_calls.require_still` rely on."""
    core = vllm / "v1/engine/core.py"
    assert "batch_queue" in attributes(class_of(core, "EngineCore"))
    assert "or bool(self.batch_queue)" in ast.unparse(method(core, "EngineCoreProc", "has_work"))
    assert ast.unparse(method(core, "EngineCoreProc", "_pause_complete").body[-1]) == "return not self.has_work()"
    assert "PauseState.PAUSED_ALL if mode == 'keep'" in ast.unparse(method(core, "EngineCoreProc", "pause_scheduler"))
    assert methods(vllm / "v1/core/sched/scheduler.py", "Scheduler")["pause_state"] == []
    assert methods(vllm / "v1/core/sched/scheduler.py", "Scheduler")["set_pause_state"] == ["pause_state"]
    assert "PAUSED_ALL" in assigned(vllm / "v1/core/sched/interface.py", "PauseState")
    assert methods(vllm / "v1/outputs.py", "AsyncModelRunnerOutput")["get_output"] == []
    sender = ast.unparse(method(vllm / "v1/executor/multiproc_executor.py", "WorkerProc", "enqueue_output"))
    assert "isinstance(output, AsyncModelRunnerOutput)" in sender
    assert "output = output.get_output()" in sender
    executor = vllm / "v1/executor/multiproc_executor.py"
    answering = ast.unparse(method(executor, "MultiprocExecutor", "_get_output_rank").body[-1])
    ranks = "self.parallel_config.tensor_parallel_size * self.parallel_config.prefill_context_parallel_size"
    assert answering == f"return self.world_size - {ranks}"
    assert "if output_rank is None or self.rank == output_rank" in source(executor)
    assert "output_rank = None" in ast.unparse(method(executor, "MultiprocExecutor", "collective_rpc"))
    for file in ("v1/worker/gpu_model_runner.py", "v1/worker/gpu/async_utils.py"):
        for one in ast.walk(tree(vllm / file)):
            if isinstance(one, ast.ClassDef) and "AsyncModelRunnerOutput" in map(ast.unparse, one.bases):
                assert "__slots__" not in assigned(vllm / file, one.name)


def method(file: Path, name: str, wanted: str) -> ast.FunctionDef:
    body = class_of(file, name).body
    return next(one for one in body if isinstance(one, ast.FunctionDef) and one.name == wanted)


def assigned(file: Path, name: str) -> set[str]:
    """Names that are assigned in the body of a class."""
    body = class_of(file, name).body
    return {ast.unparse(target) for one in body if isinstance(one, ast.Assign) for target in one.targets}


def test_a_pause_waits_for_the_batch_queue_and_outputs_are_fetched_once_each() -> None:
    hold_steps_in_flight(installed("vllm"))


def test_a_call_of_engine_core_may_be_answered_later() -> None:
    """What `core_calls.offload` relies on; in 0.23 its own pause does."""
    core = installed("vllm") / "v1/engine/core.py"
    assert "isinstance(result, Future)" in ast.unparse(method(core, "EngineCoreProc", "_invoke_utility_method"))


def test_a_pause_waits_for_the_device_too() -> None:
    """Not in 0.23: there `Hands.offload` alone waits, with `Bus.quiesce`."""
    core = installed("vllm") / "v1/engine/core.py"
    assert "synchronize_device" in ast.unparse(method(core, "EngineCore", "_finish_pause"))


def test_a_forward_pass_answers_none_where_sampling_is_to_come() -> None:
    runner = installed("vllm") / "v1/worker/gpu_model_runner.py"
    last = method(runner, "GPUModelRunner", "execute_model").body[-1]
    assert ast.unparse(last) == "return None"
    ascend = method(vllm_ascend() / "worker/model_runner_v1.py", "NPUModelRunner", "execute_model").body[-1]
    assert ast.unparse(ascend) == "return None"


def test_vllm_ascend_takes_upstreams_asynchronous_output() -> None:
    runner = source(vllm_ascend() / "worker/model_runner_v1.py")
    assert "from vllm.v1.worker.gpu_model_runner import AsyncGPUModelRunnerOutput, GPUModelRunner" in runner
    assert "async_output = AsyncGPUModelRunnerOutput(" in runner


def test_on_the_host_vllm_forces_it_off_in_the_check_that_ours_wraps() -> None:
    """The one place that `async_runner` undoes there (engine_patch/platform.py)."""
    check = method(installed("vllm") / "platforms/cpu.py", "CpuPlatform", "check_and_update_config")
    assert "scheduler_config.async_scheduling = False" in ast.unparse(check)


def test_the_host_has_all_that_asynchronous_steps_ask_of_cuda() -> None:
    runner = installed("vllm") / "v1/worker/gpu_model_runner.py"
    output = ast.unparse(class_of(runner, "AsyncGPUModelRunnerOutput"))
    assert set(re.findall(r"torch\.cuda\.(\w+)", output)) == {"Event", "Stream", "current_stream", "stream"}
    names = r"(?:async_copy_ready_event|async_output_copy_stream|prepare_inputs_event)\.(\w+)\("
    asked = set(re.findall(names, source(runner)))
    assert {"record", "synchronize", "wait_stream"} <= asked <= set(methods(OURS / "runner.py", "Past"))


# ---- spinning


def hold_spinning(vllm: Path) -> None:
    """What `engine_patch.spin` wraps and sets. A reader spins for as long as the time of its last read and
    `busy_loop_s` say, and those alone; otherwise it sleeps until it is told, for as long as it was asked to at most."""
    file = vllm / "distributed/device_communicators/shm_broadcast.py"
    spin = methods(file, "SpinCondition")
    assert spin["__init__"] == ["is_reader", "context", "notify_address", "busy_loop_s"]
    assert spin["wait"] == ["timeout_ms"]
    assert {"last_read", "busy_loop_s"} <= attributes(class_of(file, "SpinCondition"))
    assert "self.busy_loop_s = busy_loop_s" in ast.unparse(method(file, "SpinCondition", "__init__"))
    assert "self.last_read = time.monotonic()" in ast.unparse(method(file, "SpinCondition", "record_read"))
    wait = method(file, "SpinCondition", "wait")
    assert "current_time = time.monotonic()" in ast.unparse(wait)
    [decision] = [one for one in wait.body if isinstance(one, ast.If)]
    assert ast.unparse(decision.test) == "current_time <= self.last_read + self.busy_loop_s"
    assert [ast.unparse(one) for one in decision.body] == ["sched_yield()"]
    assert "self.poller.poll(timeout=timeout_ms)" in ast.unparse(decision.orelse[0])
    assert "self._spin_condition.wait(timeout_ms=read_timeout.timeout_ms())" in source(file)


def test_a_reader_spins_as_long_as_ours_says() -> None:
    hold_spinning(installed("vllm"))
    ours = source(OURS / "spin.py")
    assert "SpinCondition.__init__, SpinCondition.wait = briefly, wait_or_rest" in ours
    assert set(re.findall(r"self\.(\w+)", ours)) == {"last_read", "busy_loop_s"}


def test_a_worker_knows_whether_its_outputs_are_fetched() -> None:
    """Ranks whose outputs vLLM never fetches must not wait for that before a switch (`engine_patch.flight`)."""
    made = ast.unparse(method(OURS / "worker.py", "VnpuWorker", "init_device"))
    assert "Flight(fetched=fetches(self.rank, self.vllm_config))" in made


# ---- platforms


@pytest.mark.parametrize(
    ("ours", "file", "name"),
    [
        ("platform.py", lambda: installed("vllm") / "platforms/cpu.py", "CpuPlatform"),
        ("cuda_platform.py", lambda: installed("vllm") / "platforms/cuda.py", "CudaPlatformBase"),
        ("npu_platform.py", lambda: vllm_ascend() / "platform.py", "NPUPlatform"),
    ],
)
def test_the_platform_before_ours_has_the_check_that_ours_wraps(ours: str, file: Callable[[], Path], name: str) -> None:
    assert methods(file(), name)["check_and_update_config"] == ["vllm_config"]
    assert re.search(r'parallel_config\.worker_cls == "auto"', file().read_text())
    assert "super().check_and_update_config(vllm_config)" in (OURS / ours).read_text()


def test_cuda_has_one_platform_by_that_name() -> None:
    assert re.search(r"^CudaPlatform = ", (installed("vllm") / "platforms/cuda.py").read_text(), re.MULTILINE)


def test_vllm_takes_one_platform_and_ours_stands_before_vllm_ascends() -> None:
    assert "if len(activated_oot_plugins) >= 2: raise RuntimeError" in source(
        installed("vllm") / "platforms/__init__.py"
    )
    groups = dict(re.findall(r"\[([\w.]+)\]\n([^\[]*)", vllm_ascend_entry_points()))
    names = {group: set(re.findall(r"^(\w+) *=", text, re.MULTILINE)) for group, text in groups.items()}
    assert names["vllm.platform_plugins"] == {"ascend"}
    assert names["vllm.general_plugins"] == set(ASCEND_PLUGINS)


def test_vllm_ascend_shortens_its_list_of_captures_as_ours_does() -> None:
    assert functions(vllm_ascend() / "utils.py")["update_cudagraph_capture_sizes"] == [
        "vllm_config",
        "cudagraph_capture_sizes",
    ]
    graphs = source(vllm_ascend() / "compilation/acl_graph.py")
    assert '_STREAM_RESOURCE_ERROR_CODE = "207008"' in graphs  # what running out of streams is called there too


# ---- torch


@pytest.mark.parametrize(
    ("file", "allocator"),
    [
        (lambda: installed("torch") / "cuda/memory.py", "CUDAPluggableAllocator"),
        (lambda: torch_npu() / "npu/memory.py", "NPUPluggableAllocator"),
    ],
    ids=["cuda", "npu"],
)
def test_torch_has_the_memory_that_is_asked_for(file: Callable[[], Path], allocator: str) -> None:
    memory = file()
    made = methods(memory, allocator)
    assert made["__init__"] == ["path_to_so_file", "alloc_fn_name", "free_fn_name"]
    assert methods(memory, "MemPool")["__init__"][0] == "allocator"
    found = functions(memory)
    assert found["use_mem_pool"][0] == "pool"
    assert found["empty_cache"] == []
    assert not set(found["memory_snapshot"]) - {"mempool_id", "include_traces"}  # all with defaults
    kind = "cuda" if allocator.startswith("CUDA") else "npu"
    assert f'"{allocator}"' in (OURS / f"{kind}_worker.py").read_text()


def test_a_snapshot_names_what_is_read_of_it() -> None:
    text = (installed("torch") / "cuda/_memory_viz.py").read_text()
    for key in ('["blocks"]', '["size"]', '["state"]', '["address"]', f'"{device_pools.DEAD}"'):
        assert key in text


# ---- the vLLM that vllm-ascend goes with, and the newest one, by 100 and 336 MB of wheel


@pytest.mark.system
@pytest.mark.parametrize("fetch", [vllm_023, vllm_033], ids=["0.23", "0.33"])
class TestOtherVllm:
    def test_the_scheduler_pauses_keeping_what_runs(self, fetch: Fetch) -> None:
        core = methods(fetch() / "v1/engine/core.py", "EngineCore")
        assert core["pause_scheduler"] == ["mode", "clear_cache"]
        assert {"resume_scheduler", "is_scheduler_paused", "collective_rpc"} <= set(core)
        client = methods(fetch() / "v1/engine/core_client.py", "AsyncMPClient")
        assert client["pause_scheduler_async"] == ["mode", "clear_cache"]
        assert {"resume_scheduler_async", "is_scheduler_paused_async", "call_utility_async"} <= set(client)

    def test_a_pause_waits_for_the_batch_queue_and_outputs_are_fetched_once_each(self, fetch: Fetch) -> None:
        hold_steps_in_flight(fetch())

    def test_the_agent_meets_the_engine_client(self, fetch: Fetch) -> None:
        assert methods(fetch() / "v1/engine/async_llm.py", "AsyncLLM")["collective_rpc"][:3] == [
            "method",
            "timeout",
            "args",
        ]
        assert "propagate_error" in methods(fetch() / "v1/engine/output_processor.py", "OutputProcessor")
        assert {"processes", "manager_stopped"} <= attributes(
            class_of(fetch() / "v1/engine/utils.py", "CoreEngineProcManager")
        )
        entry = {vllm_023: "openai/api_server.py", vllm_033: "launchers/api_server/app_state.py"}[fetch]
        assert "state.engine_client = engine_client" in source(fetch() / "entrypoints" / entry)

    def test_live_blocks_find_what_they_read(self, fetch: Fetch) -> None:
        pool = class_of(fetch() / "v1/core/block_pool.py", "BlockPool")
        assert {"blocks", "free_block_queue"} <= attributes(pool)
        block = source(fetch() / "v1/core/kv_cache_utils.py")
        assert "ref_cnt: int = 0" in block
        assert "is_null: bool = False" in block
        assert "def get_all_free_blocks(self)" in block
        scheduler = methods(fetch() / "v1/core/sched/scheduler.py", "Scheduler")
        assert scheduler["reset_prefix_cache"][0] == "reset_running_requests"
        assert methods(fetch() / "v1/core/kv_cache_manager.py", "KVCacheManager")["evict_blocks"] == ["block_ids"]
        core = methods(fetch() / "v1/engine/core.py", "EngineCore")
        assert not {core_calls.OFFLOAD, core_calls.RESTORE} & set(core)

    def test_kv_and_schedules_are_described_as_they_are_read(self, fetch: Fetch) -> None:
        config = source(fetch() / "v1/kv_cache_interface.py")
        strides = ("layers: list[str]", "layer_stride: int", "block_stride: int", "offset: int = 0")
        placed = {vllm_023: ("shared_by: list[str]",), vllm_033: strides}[fetch]
        for field in ("num_blocks: int", "kv_cache_tensors: list[KVCacheTensor]", "size: int", *placed):
            assert field in config
        output = source(fetch() / "v1/core/sched/output.py")
        assert "block_ids: tuple[list[int], ...]" in output
        assert "new_block_ids: list[tuple[list[int], ...] | None]" in output

    def test_options_that_are_refused_have_their_names(self, fetch: Fetch) -> None:
        parallel, whole = source(fetch() / "config/parallel.py"), source(fetch() / "config/vllm.py")
        for name in ("_api_process_count", "data_parallel_size", "distributed_executor_backend", "world_size"):
            assert f"{name}:" in parallel
        for name in ("lora_config", "weight_transfer_config", "kv_transfer_config"):
            assert f"{name}:" in whole
        assert "kv_cache_memory_bytes:" in source(fetch() / "config/cache.py")

    def test_loading_and_spinning_have_their_hooks(self, fetch: Fetch) -> None:
        loader = fetch() / "model_executor/model_loader"
        assert "process_weights_after_loading(model, model_config, target_device)" in source(loader / "base_loader.py")
        hold_spinning(fetch())
        stats = methods(fetch() / "v1/metrics/loggers.py", "StatLoggerBase")
        ours = methods(OURS / "load.py", "KvUse")
        assert ours["record"] == stats["record"]
        assert "log_engine_initialized" in stats


@pytest.mark.system
class TestVllm033:
    """Not installed anywhere yet: whether what stands before its workers and platforms would still fit."""

    def test_workers_have_what_is_called_above_them(self) -> None:
        worker = vllm_033() / "v1/worker/gpu_worker.py"
        above = methods(worker, "Worker")
        assert above["init_device"] == []
        assert above["initialize_from_config"] == ["kv_cache_config"]
        assert above["execute_model"] == ["scheduler_output"]
        assert above["sample_tokens"] == ["grammar_output"]
        assert set(above["load_model"]) <= {"load_dummy_weights"}
        cpu = class_of(vllm_033() / "v1/worker/cpu_worker.py", "CPUWorker")
        assert [ast.unparse(base) for base in cpu.bases] == ["Worker"]
        assert "if kv_cache_memory_bytes := self.cache_config.kv_cache_memory_bytes:" in source(worker)

    def test_platforms_have_the_check_that_ours_wraps(self) -> None:
        for file, name in (("cpu.py", "CpuPlatform"), ("cuda.py", "CudaPlatformBase")):
            assert methods(vllm_033() / "platforms" / file, name)["check_and_update_config"] == ["vllm_config"]
            assert re.search(r'parallel_config\.worker_cls == "auto"', source(vllm_033() / "platforms" / file))

    def test_the_server_is_still_found_under_its_old_name(self) -> None:
        """`vnpu engine` starts that module, and does so for every version."""
        shim = source(vllm_033() / "entrypoints/openai/api_server.py")
        assert "from vllm.entrypoints.launchers.api_server.entry import main main()" in shim

    def test_a_pause_waits_for_the_device_too(self) -> None:
        core = vllm_033() / "v1/engine/core.py"
        assert "synchronize_device" in ast.unparse(method(core, "EngineCore", "_finish_pause"))
