"""Code of this benchmark inside vLLM's processes: a distribution with an entry point, written for one run."""

from __future__ import annotations

from pathlib import Path

META = "Metadata-Version: 2.1\nName: vnpu-bench-{module}\nVersion: 0\n"
ENTRY = "[vllm.general_plugins]\nvnpu_bench_{module} = benchmarks.async_runner.{module}:install\n"


def plugged(folder: Path, module: str) -> str:
    """A folder for PYTHONPATH that makes every vLLM process which sees it call `install` of this package's `module`."""
    info = folder / f"vnpu_bench_{module}-0.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text(META.format(module=module))
    (info / "entry_points.txt").write_text(ENTRY.format(module=module))
    return str(folder)
