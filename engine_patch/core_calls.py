"""What the agent asks of EngineCore beside vLLM's own calls: to offload, and to restore and run on.

A utility call finds any method of EngineCore by its name (vllm/v1/engine/core.py, 0.32.0); `install` adds these. Both
are called while the scheduler is paused, and hand on to the workers. One call where vLLM would need two saves the way
through the API server's process and back, in which the device would do nothing.
"""

from __future__ import annotations

import functools
import sys
from typing import Any

from coordinator.store import prompt
from engine_patch import report, spin
from engine_patch.live_blocks import live_blocks

OFFLOAD = "vnpu_offload"
"""Of EngineCore, and of its workers."""
RESTORE = "vnpu_restore"
"""Of EngineCore, and of its workers."""


def offload(core: Any, budget: int | None) -> list[str]:
    """The workers' reports; `budget`: bytes of KV a device that may be kept (None: all that is needed).

    Raises:
        RuntimeError: the scheduler does not stand still, or a step is in flight; no worker was asked.
    """
    require_still(core)
    _hand_on()
    reports: list[str] = core.collective_rpc(OFFLOAD, args=(live_blocks(core, budget),))
    return reports


def _hand_on() -> None:
    """Who computes and copies gets the processors; this process only hands on, but at once."""
    spin.rest()
    _be_prompt()


@functools.cache
def _be_prompt() -> None:
    """Once; not when it starts: its workers, which compute, would do as it does."""
    prompt.all_prompt()


def require_still(core: Any) -> None:
    """No step is in flight and none can begin (vllm/v1/engine/core.py, 0.32.0: the batch queue holds what was handed to
    the workers and not taken back; there is none where steps are synchronous). Raises RuntimeError."""
    state = core.scheduler.pause_state.name
    if state != "PAUSED_ALL" or core.batch_queue:
        raise RuntimeError(
            f"a switch was ordered with {len(core.batch_queue or ())} steps in flight, scheduler {state}"
        )


def restore(core: Any) -> list[str]:
    """The workers' reports. Where every rank has its memory, requests run on before anybody hears of it."""
    _hand_on()
    reports: list[str] = core.collective_rpc(RESTORE)
    if runs(report.decode(reports)):
        core.resume_scheduler()
        spin.work(spin.SETTLE_S)
    return reports


def runs(reports: tuple[report.Report, ...]) -> bool:
    """Whether requests may run after a restore: no rank was denied its pages, or failed."""
    return not any(one.error or one.denied for one in reports)


def install() -> None:
    """In the EngineCore process, which has loaded its own module when plugins are called. Idempotent."""
    module = sys.modules.get("vllm.v1.engine.core")
    if module is not None:
        for name, call in ((OFFLOAD, offload), (RESTORE, restore)):
            setattr(module.EngineCore, name, call)
