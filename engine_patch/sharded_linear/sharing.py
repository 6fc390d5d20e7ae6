"""Shared layers in one worker, from the options to the last sleep: what `engine_patch.worker` knows of them."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from vllm.distributed.parallel_state import get_tp_group
from vllm.model_executor.layers.linear import LinearBase

from engine_patch.memory import Hands
from engine_patch.partners import Apart
from engine_patch.settings import Birth
from engine_patch.sharded_linear import carriers, layers, series
from engine_patch.sharded_linear.carriers import Carrier
from engine_patch.sharded_linear.group import Group
from engine_patch.sharded_linear.options import Options, read
from engine_patch.sharded_linear.scratch import Scratch
from engine_patch.sharded_linear.series import Series, Unshareable, chosen, plan
from engine_patch.stopwatch import Stopwatch

log = logging.getLogger("vllm.vnpu.sharded")


class Unshared(Apart):
    """A worker that shares no layers."""

    active = False

    def building(self) -> AbstractContextManager[None]:
        """Around vLLM's `load_model`."""
        return nullcontext()

    def planned(self, model: torch.nn.Module) -> None:
        """Weights are loaded, none is processed yet."""

    def processing(self, module: torch.nn.Module) -> AbstractContextManager[None]:
        """Around `process_weights_after_loading` of one module."""
        return nullcontext()

    def loaded(self) -> None:
        """All are processed."""

    def ready(self) -> None:
        """All of this rank's weights are here, and nobody looks at them any more."""

    def still(self) -> None:
        """Nothing changes in this rank's weights until `ready`."""


class Shared(Unshared):
    """See the module. Also the hands' `Partners`."""

    active = True
    alone = False

    def __init__(self, options: Options, hands: Hands, group: Group, carrier: Carrier) -> None:
        self._options = options
        self._group = group
        self._carrier = carrier
        self._scratch = Scratch(hands)
        self._series: dict[str, Series] = {}
        self._names: dict[torch.nn.Module, str] = {}
        self._together = False

    @contextmanager
    def building(self) -> Iterator[None]:
        """Plain weights of layers that will be shared land in scratch pages: what is freed of them leaves no holes
        among weights that stay."""
        make = LinearBase.__init__

        @functools.wraps(make)
        def made(layer: Any, *args: Any, **kwargs: Any) -> None:
            make(layer, *args, **kwargs)
            if layers.whole(layer) and chosen(layer.prefix, self._options.layers):
                self._scratch.divert(layer)

        LinearBase.__init__ = made
        try:
            yield
        finally:
            LinearBase.__init__ = make

    def planned(self, model: torch.nn.Module) -> None:
        """Raises Unshareable."""
        found, modules = layers.candidates(model)
        planned = plan(found, self._options.layers, self._group.size, self._options.prefetch)
        self._series = {layer: one for one in planned for layer in one.layers}
        self._names = {modules[layer]: layer for layer in self._series}
        for one in planned:
            log.info("%s: %d layers over %d ranks", one.name, len(one.layers), self._group.size)
        self._carrier.prepare(planned, modules)

    def processing(self, module: torch.nn.Module) -> AbstractContextManager[None]:
        name = self._names.get(module)
        if name is None:
            return nullcontext()
        placing: AbstractContextManager[None] = self._carrier.placing(self._series[name], name, module)
        return placing

    def loaded(self) -> None:
        """Raises Unshareable, OutOfStep, DaemonRefused."""
        if not self._series:
            raise Unshareable("sharded_linear: no weights were processed after loading", remedy="report this model")
        self._carrier.loaded()
        self._scratch.close()

    @contextmanager
    def meeting(self, watch: Stopwatch) -> Iterator[None]:
        here = False
        try:
            yield
            here = True
        finally:
            with watch.step("share"):
                self._together = self._carrier.meet(here)

    def ready(self) -> None:
        if self._together:
            self._carrier.ready()

    def still(self) -> None:
        self._carrier.still()

    @property
    def bytes(self) -> int:
        return self._carrier.bytes

    def part(self) -> None:
        self._together = False
        self._carrier.part()


def open_sharing(vllm_config: Any, hands: Hands, birth: Birth) -> Unshared:
    """After the ranks' groups stand, before the model is made.

    Raises:
        ConfigError, Unshareable: what is asked for cannot be.
    """
    options = read(vllm_config.additional_config)
    if options is None:
        return Unshared()
    tensor_parallel = get_tp_group()
    if tensor_parallel.world_size < 2:
        raise series.Unshareable("sharded_linear: this group has one rank", remedy="give the model several devices")
    group = Group(tensor_parallel.ranks, tensor_parallel.rank_in_group, options.deadline_s)
    eager = vllm_config.model_config.enforce_eager
    return Shared(options, hands, group, carriers.make(options, hands, group, birth.engine, birth.socket, eager=eager))
