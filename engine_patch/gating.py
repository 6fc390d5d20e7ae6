"""Gates in front of a model's modules: while a restore is under way, each waits for its own weights.

One hook for all modules (`torch.nn.modules.module.register_module_forward_pre_hook`), there only while it is needed: a
resident model pays nothing. Only for models that run module by module: inside a compiled graph no hook runs.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.nn.modules.module import register_module_forward_pre_hook

from engine_patch.restoring import MemoryFault

LAST_WORD_S = 10.0
"""What fails at a gate waits so long before it raises: by then the agent, which was told why, has ended the engine with
that reason instead of vLLM's."""


class Gates:
    """Called from the worker's main thread."""

    def __init__(self, stages: Mapping[torch.nn.Module, int], await_stage: Callable[[int], None]) -> None:
        """`stages`: what each module waits for with `await_stage`."""
        self._stages = stages
        self._await = await_stage
        self._hook: Any = None

    def install(self) -> None:
        """Modules wait from now on."""
        if self._hook is None:
            self._hook = register_module_forward_pre_hook(self._before)

    def pass_first(self, settled: bool) -> None:
        """Before a step: wait for what no module waits for. `settled`: nothing is under way any more."""
        if self._hook is None:
            return
        if settled:
            self._hook.remove()
            self._hook = None
        else:
            self._pass(0)

    def _before(self, module: torch.nn.Module, args: Any) -> None:
        stage = self._stages.get(module)
        if stage is not None:
            self._pass(stage)

    def _pass(self, stage: int) -> None:
        try:
            self._await(stage)
        except MemoryFault:
            threading.Event().wait(LAST_WORD_S)
            raise
