"""Gates in front of a model's modules: while a restore is under way, each waits for its own weights.

One hook for all modules (`torch.nn.modules.module.register_module_forward_pre_hook`), there only while it is needed: a
resident model pays nothing. What oneDNN packs is read by its kernel alone: that one's gate stands before the kernel, so
a layer's first product runs while its other weights are still on their way. Only for models that run module by module:
inside a compiled graph no hook runs.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.modules.module import register_module_forward_pre_hook

from engine_patch.modules import Stages
from engine_patch.restoring import MemoryFault

LAST_WORD_S = 10.0
"""What fails at a gate waits so long before it raises: by then the agent, which was told why, has ended the engine with
that reason instead of vLLM's."""


class Gates:
    """Called from the worker's main thread."""

    def __init__(self, stages: Stages, await_stage: Callable[[int], None]) -> None:
        """`stages`: what modules and kernels wait for with `await_stage`."""
        self._stages = stages
        self._await = await_stage
        self._hook: Any = None
        self._kernels: dict[torch.nn.Module, Any] = {}

    def install(self) -> None:
        """Modules wait from now on."""
        if self._hook is not None:
            return
        self._hook = register_module_forward_pre_hook(self._before)
        for module, stage in self._stages.kernels.items():
            self._kernels[module] = module.cpu_linear
            module.cpu_linear = functools.partial(self._run, module.cpu_linear, stage)

    def pass_first(self, settled: bool) -> None:
        """Before a step: wait for what no module waits for. `settled`: nothing is under way any more."""
        if self._hook is None:
            return
        if settled:
            self._remove()
        else:
            self._pass(0)

    def _remove(self) -> None:
        self._hook.remove()
        self._hook = None
        while self._kernels:
            module, kernel = self._kernels.popitem()
            module.cpu_linear = kernel

    def _run(self, kernel: Callable[..., Any], stage: int, *args: Any) -> Any:
        self._pass(stage)
        return kernel(*args)

    def _before(self, module: torch.nn.Module, args: Any) -> None:
        stage = self._stages.modules.get(module)
        if stage is not None:
            self._pass(stage)

    def _pass(self, stage: int) -> None:
        try:
            self._await(stage)
        except MemoryFault:
            threading.Event().wait(LAST_WORD_S)
            raise
