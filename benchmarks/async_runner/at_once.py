"""The thread of a worker that computes a step sends what comes of it, where vLLM gives each output to another thread.

That thread waits for the device's copy. On a host there is nothing to wait for, and it fights the next step's Python
for the GIL. vLLM loads `install` as a general plugin from a distribution that `plugin.plugged` writes: nothing of it is
in the product. For vLLM 0.32.0 (vllm/v1/executor/multiproc_executor.py).
"""

from __future__ import annotations


def install() -> None:
    """In a worker process; idempotent."""
    from vllm.v1.executor.multiproc_executor import WorkerProc

    WorkerProc.handle_output = WorkerProc.enqueue_output
