"""What we rely on of the vendors' and torch's sides, held against their own headers and sources: the functions that the
drivers call, the allocator that torch calls, and the worker of vllm-ascend 0.23. Nothing of it is imported or run."""

from __future__ import annotations

import ast
import re
import subprocess
from functools import cache
from pathlib import Path

import pytest

from tests.helpers.vendor_headers import (
    ROOT,
    acl_include,
    compiler,
    cuda_include,
    hccl_include,
    torch_npu,
    vllm_ascend,
)

CSRC = ROOT / "native" / "csrc"
SHAPE = """
#include <cstdio>
#include <string>
#include <type_traits>
template <class T> std::string one() {
    if constexpr (std::is_void_v<T>) return "void";
    else return (std::is_floating_point_v<T> ? "float" : "") + std::to_string(sizeof(T));
}
template <class R, class... A> std::string shape(R (*)(A...)) {
    return one<R>() + "(" + (std::string() + ... + (one<A>() + " ")) + ")";
}
"""
"""Prints how a function is called as far as its binary interface goes: the size of what it returns and takes."""
APIS = {"ascend": ("ascend_api.h", "acl/acl.h", acl_include), "cuda": ("cuda_api.h", "cuda.h", cuda_include)}


def run(source: str, *includes: Path, folder: Path) -> list[str]:
    program = folder / "program"
    flags = [f"-isystem{include}" for include in includes]
    command = [*compiler(), "-x", "c++", "-", *flags, "-o", str(program)]
    done = subprocess.run(command, input=source, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return subprocess.run([str(program)], capture_output=True, text=True, timeout=60, check=True).stdout.splitlines()


def looked_up(vendor: str) -> list[str]:
    """The functions that the driver looks up in the vendor's library."""
    return re.findall(r"\(\*(\w+)\)\(", (CSRC / APIS[vendor][0]).read_text())


@pytest.mark.parametrize("vendor", APIS)
def test_every_function_is_called_as_the_vendor_declares_it(vendor: str, tmp_path: Path) -> None:
    ours, header, include = APIS[vendor]
    names = looked_up(vendor)
    assert len(names) > 25

    def program(head: str, pointers: list[str]) -> str:
        lines = [
            f'    std::printf("{name} %s\\n", shape(static_cast<decltype({pointer})>(nullptr)).c_str());'
            for name, pointer in zip(names, pointers, strict=True)
        ]
        return "\n".join([head, SHAPE, "int main() {", *lines, "}"])

    mine = program(f'#include "{CSRC / ours}"', [f"vnpu::{vendor}::Functions::{name}" for name in names])
    theirs = program(f"#include <{header}>", [f"&{name}" for name in names])
    assert run(mine, folder=tmp_path) == run(theirs, include(), folder=tmp_path)


def test_torch_npu_calls_an_allocator_as_ours_is_declared(tmp_path: Path) -> None:
    """`NPUPluggableAllocator(path, malloc, free)` casts both names to these functions."""
    header = (torch_npu() / "include/torch_npu/csrc/npu/NPUPluggableAllocator.h").read_text()
    assert "std::function<void*(size_t, int, aclrtStream)> alloc_fn" in header
    assert "std::function<void(void*, size_t, int, aclrtStream)> free_fn" in header
    source = f"""
#include "{CSRC / "device_allocator.h"}"
{SHAPE}
int main() {{
    std::puts(shape(static_cast<decltype(&vnpu_malloc)>(nullptr)).c_str());
    std::puts(shape(static_cast<void* (*)(std::size_t, int, void*)>(nullptr)).c_str());
    std::puts(shape(static_cast<decltype(&vnpu_free)>(nullptr)).c_str());
    std::puts(shape(static_cast<void (*)(void*, std::size_t, int, void*)>(nullptr)).c_str());
}}
"""
    malloc, wanted_malloc, free, wanted_free = run(source, folder=tmp_path)
    assert (malloc, free) == (wanted_malloc, wanted_free)


def test_torch_npu_makes_an_allocator_of_a_path_and_two_names() -> None:
    tree = ast.parse((torch_npu() / "npu/memory.py").read_text())
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    made = methods(classes["NPUPluggableAllocator"])
    assert made["__init__"] == ["path_to_so_file", "alloc_fn_name", "free_fn_name"]
    assert "allocator" in methods(classes["_NPUAllocator"])  # what a MemPool takes
    assert {"MemPool", "_NPUAllocator"} <= set(classes)


def methods(node: ast.ClassDef) -> dict[str, list[str]]:
    """Names of the methods, and of their arguments after `self`."""
    return {
        one.name: [argument.arg for argument in [*one.args.args, *one.args.kwonlyargs][1:]]
        for one in node.body
        if isinstance(one, ast.FunctionDef)
    }


@cache
def ascend_worker() -> dict[str, list[str]]:
    tree = ast.parse((vllm_ascend() / "worker/worker.py").read_text())
    worker = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "NPUWorker")
    return methods(worker)


def test_vllm_ascend_sleeps_as_we_take_it_to() -> None:
    """`docs/ascend.md`: its own allocator, by two names, in a pool; and the option that clears more."""
    worker = ascend_worker()
    assert (worker["sleep"], worker["wake_up"]) == (["level"], ["tags"])
    assert worker["initialize_from_config"] == ["kv_cache_config"]
    camem = (vllm_ascend() / "device_allocator/camem.py").read_text()
    assert 'torch.npu.memory.NPUPluggableAllocator(lib_name, "my_malloc", "my_free")' in camem
    assert "torch.npu.memory.use_mem_pool(mem_pool)" in camem
    assert 'additional_config.get("enable_sleep_mode_extra_cleanup"' in (vllm_ascend() / "ascend_config.py").read_text()


def test_hccl_has_what_the_page_about_ascend_speaks_of(tmp_path: Path) -> None:
    """A communicator's buffer is a size of its configuration; communicators are destroyed one by one."""
    source = """
#include <cstdio>
#include <type_traits>
#include <third_party/hccl/inc/hccl/hccl.h>
int main() {
    HcclCommConfig config{};
    HcclCommConfigInit(&config);
    static_assert(std::is_same_v<decltype(config.hcclBufferSize), uint32_t>);
    static_assert(std::is_same_v<decltype(&HcclCommDestroy), HcclResult (*)(HcclComm)>);
    std::puts(config.hcclBufferSize == HCCL_COMM_BUFFSIZE_CONFIG_NOT_SET ? "not set" : "set");
}
"""
    assert run(source, hccl_include(), acl_include(), folder=tmp_path) == ["not set"]
