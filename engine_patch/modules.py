"""Which module of a model uses which blocks of the weights' arena: what `stages` needs to know of a vLLM model.

Tensors say where they lie. What oneDNN packs does not: for that, the blocks are noted that appear while one module's
weights are processed (vllm/model_executor/model_loader/utils.py, 0.32.0, `process_weights_after_loading`). Whatever
stays unknown belongs to nobody, and comes back first.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import msgspec
import torch
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.model_loader import base_loader

from engine_patch.stages import Owners, Range
from native._native import Arena

HEAD = "lm_head"


class Placing(Protocol):
    """Says where processed weights go (`engine_patch.sharded_linear.sharing`)."""

    def planned(self, model: torch.nn.Module) -> None: ...

    def processing(self, module: torch.nn.Module) -> AbstractContextManager[None]: ...


class Packed:
    """Notes what is packed while a model loads; one use."""

    def __init__(self, arena: Arena) -> None:
        self._arena = arena
        self._noted: list[tuple[torch.nn.Module, Any, set[Range]]] = []

    @contextmanager
    def noting(self, placing: Placing) -> Iterator[None]:
        """Around `load_model`; `placing` hears of every module that is processed."""
        process = base_loader.process_weights_after_loading

        @functools.wraps(process)
        def noted(model: torch.nn.Module, *args: Any, **kwargs: Any) -> None:
            each: list[Any] = [getattr(module, "quant_method", None) for module in model.modules()]
            methods = {id(method): method for method in each if hasattr(method, "process_weights_after_loading")}
            for method in methods.values():
                method.process_weights_after_loading = self._noting(method.process_weights_after_loading, placing)
            placing.planned(model)
            try:
                process(model, *args, **kwargs)
            finally:
                for method in methods.values():
                    del method.process_weights_after_loading

        base_loader.process_weights_after_loading = noted
        try:
            yield
        finally:
            base_loader.process_weights_after_loading = process

    def _noting(
        self, process: Callable[[torch.nn.Module], None], placing: Placing
    ) -> Callable[[torch.nn.Module], None]:
        def noted(module: torch.nn.Module) -> None:
            before = set(self._arena.blocks())
            with placing.processing(module):
                process(module)
            # Holding the callable holds its packed weights: their blocks cannot go to anybody else meanwhile.
            if (kernel := getattr(module, "cpu_linear", None)) is not None:
                self._noted.append((module, kernel, set(self._arena.blocks()) - before))

        return noted

    def blocks(self) -> Iterator[tuple[torch.nn.Module, Range]]:
        """Those that still belong to their module."""
        live = set(self._arena.blocks())
        for module, kernel, blocks in self._noted:
            if getattr(module, "cpu_linear", None) is kernel:
                yield from ((module, block) for block in blocks & live)


class Stages(msgspec.Struct, frozen=True):
    """Who waits for which stage, of `count` stages in all."""

    count: int
    modules: dict[torch.nn.Module, int]
    """Before such a module runs. Modules that are not listed are used before the layers, or nobody knows."""
    kernels: dict[torch.nn.Module, int]
    """Before such a module's `cpu_linear` runs: nothing else can read what it has packed."""


def stages(model: torch.nn.Module, packed: Packed) -> Stages:
    """A decoder layer has one stage for whatever lies in tensors, which anybody may read once the layer runs, and one
    for each packed kernel, in the order in which they are defined; the output head has the last stage."""
    kernels_of = {module for module, _ in packed.blocks()}
    modules: dict[torch.nn.Module, int] = {}
    kernels: dict[torch.nn.Module, int] = {}
    count = 1
    for layer in _layers(model):
        first, count = count, count + 1
        for module in layer.modules():
            modules.setdefault(module, first)
            if module in kernels_of and module not in kernels:
                kernels[module], count = count, count + 1
    for module in _head(model):
        modules[module] = count
        kernels.pop(module, None)
    return Stages(count + 1, modules, kernels)


def _layers(model: torch.nn.Module) -> torch.nn.ModuleList:
    lists = [module for module in model.modules() if isinstance(module, torch.nn.ModuleList)]
    return max(lists, key=len, default=torch.nn.ModuleList())


def _head(model: torch.nn.Module) -> tuple[torch.nn.Module, ...]:
    """The output head and who calls it, where it is nothing else as well (tied embeddings)."""
    processors = [module for module in model.modules() if isinstance(module, LogitsProcessor)]
    head = getattr(model, HEAD, None)
    alone = [module for _, module in model.named_modules(remove_duplicate=False) if module is head]
    if len(processors) == 1 and len(alone) == 1 and isinstance(head, torch.nn.Module):
        return (*processors, *head.modules())
    return ()


def owners(model: torch.nn.Module, packed: Packed, base: int, blocks: Sequence[Range], stages: Stages) -> Owners:
    """Which stage needs each block first. `blocks`: those that live, as offsets from `base`."""
    first: dict[Range, int] = {}

    def need(block: Range, at: int) -> None:
        first[block] = min(at, first.get(block, at))

    starts = {base + offset: (offset, length) for offset, length in blocks}
    for module in model.modules():
        own = (*module.parameters(recurse=False), *module.buffers(recurse=False))
        for tensor in own:
            if (block := starts.get(tensor.untyped_storage().data_ptr())) is not None:
                need(block, stages.modules.get(module, 0))
    known = set(first)
    for module, block in packed.blocks():
        if block not in known:
            need(block, stages.kernels.get(module, stages.modules.get(module, 0)))
    return Owners(stages.count, first)
