"""What the agent asks of EngineCore beside vLLM's own calls: to freeze, to offload, and to restore and run on.

A utility call finds any method of EngineCore by its name (vllm/v1/engine/core.py, 0.32.0), and where it returns a
Future its answer goes out when that is done; `install` adds these. Memory is touched while the scheduler is paused and
no step is in flight. One call where vLLM would need two saves the way through the API server's process and back, in
which the device would do nothing: so `offload` may come while the engine is still being frozen, and waits here.
"""

from __future__ import annotations

import functools
import logging
import sys
from concurrent.futures import Future
from typing import Any

from coordinator.store import prompt
from engine_patch import report, spin
from engine_patch.live_blocks import live_blocks

log = logging.getLogger("vllm.vnpu.core")

DRAIN = "vnpu_drain"
"""Of EngineCore."""
OFFLOAD = "vnpu_offload"
"""Of EngineCore, and of its workers."""
RESTORE = "vnpu_restore"
"""Of EngineCore, and of its workers."""


def drain(core: Any) -> Future[None] | None:
    """Begin no forward pass any more; None, or done: none is under way. Nothing is dropped: `keep` alone does not keep,
    `clear_cache=True`, the default, preempts what runs and drops its KV.

    An idle engine stands still as soon as its scheduler does. vLLM's own pause would ask the workers for an idle device
    as well, which they see to themselves before pages leave (`Hands.offload`), and they would spin after that question
    while node daemon and etcd want the processor."""
    scheduler, drained = core.scheduler, None
    core.vnpu_drained = failed = Future[None]()
    failed.set_exception(RuntimeError("the drain before it failed"))  # unless what follows goes through
    if core.has_work():
        drained = core.pause_scheduler(mode="keep", clear_cache=False)
    else:
        scheduler.set_pause_state(type(scheduler.pause_state).PAUSED_ALL)
    core.vnpu_drained = drained
    return drained


def offload(core: Any, budget: int | None) -> list[str] | Future[list[str]]:
    """The workers' reports, as soon as the last `drain` is done; `budget`: bytes of KV a device that may be kept (None:
    all that is needed).

    Raises:
        RuntimeError: the scheduler does not stand still, or a step is in flight; no worker was asked.
    """
    drained: Future[None] | None = getattr(core, "vnpu_drained", None)
    if drained is not None and drained.done():
        drained.result()
    if drained is None or drained.done():
        return _offload(core, budget)
    offloaded: Future[list[str]] = Future()

    def go_on(still: Future[None]) -> None:
        try:
            still.result()
            offloaded.set_result(_offload(core, budget))
        except Exception as error:
            log.exception("%s failed", OFFLOAD)  # as vLLM does for calls that are answered at once
            offloaded.set_exception(error)

    drained.add_done_callback(go_on)
    return offloaded


def _offload(core: Any, budget: int | None) -> list[str]:
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
        for name, call in ((DRAIN, drain), (OFFLOAD, offload), (RESTORE, restore)):
            setattr(module.EngineCore, name, call)
