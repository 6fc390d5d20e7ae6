"""`--load-format vnpu_netloader`: weights from a running engine of the same model, from disk where that fails.

The model is built as vLLM builds it, with whatever its memory holds in the place of weights, and laid out for its
kernels; then the bytes of a peer that has the same layout take their place. Public interface:
`vllm.model_executor.model_loader.register_model_loader` (vLLM 0.32.0).
"""

from __future__ import annotations

import copy
import gc
import logging
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from vllm.model_executor.model_loader import register_model_loader
from vllm.model_executor.model_loader.base_loader import BaseModelLoader
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader
from vllm.model_executor.model_loader.utils import process_weights_after_loading
from vllm.utils.torch_utils import set_default_torch_dtype

from coordinator.errors import ConfigError
from engine_patch.checkpoints import Room
from engine_patch.inventory import laid_out
from engine_patch.loader_options import FORMAT, Options, read
from engine_patch.streaming import Streaming
from engine_patch.tensors import Unstreamable, table
from native._native import Arena
from transfer.errors import TransferError
from transfer.netloader.client import StreamFailed
from transfer.netloader.identity import Identity

log = logging.getLogger("vllm.vnpu.netloader")


class Bound(NamedTuple):
    """What the worker hands to the loader, which vLLM makes. `streaming` None: and `why`."""

    streaming: Streaming | None
    identity: Identity | None
    arena: Arena
    why: str = ""


_bound: Bound | None = None


def bind(bound: Bound) -> None:
    """For the loader that vLLM makes next in this process; registers the format."""
    global _bound
    if _bound is None:
        register_model_loader(FORMAT)(NetLoader)
    _bound = bound


class NotStreamed(Exception):
    """Why disk must do."""


_WAYS = {"_from_peers": "as kernels use them", "_from_checkpoint": "as a checkpoint"}


class _FromRoom(DefaultModelLoader):  # type: ignore[misc]  # vLLM is not followed
    """vLLM's own loading, with tensors that have come already in the place of files."""

    def __init__(self, load_config: Any, room: Room) -> None:
        super().__init__(load_config)
        self._room = room

    def get_all_weights(self, model_config: Any, model: Any) -> Iterator[tuple[str, torch.Tensor]]:
        self.counter_before_loading_weights = time.perf_counter()
        return self._room.tensors()


class NetLoader(BaseModelLoader):  # type: ignore[misc]  # vLLM is not followed
    """See the module."""

    def __init__(self, load_config: Any, clock: Callable[[], float] = time.monotonic) -> None:
        """Raises ConfigError where the extra configuration cannot be used."""
        super().__init__(load_config)
        self._clock = clock
        self._until = 0.0
        self._options: Options = read(load_config.model_loader_extra_config or {})
        plain = copy.copy(load_config)
        plain.load_format, plain.model_loader_extra_config = "auto", {}
        self._disk = DefaultModelLoader(plain)

    def download_model(self, model_config: Any) -> None:
        if self._options.load_from != "peers":
            self._disk.download_model(model_config)

    def load_weights(self, model: Any, model_config: Any) -> None:
        self._disk.load_weights(model, model_config)

    def load_model(self, vllm_config: Any, model_config: Any, prefix: str = "") -> Any:
        """From a peer, or else from disk, with nothing of the first attempt left. One limit holds for all that is tried
        before disk.

        Raises:
            ConfigError: `load_from` is peers and no peer gave the weights.
        """
        registered, reasons = _Registered(vllm_config), []
        self._until = self._clock() + self._options.limit_s
        for attempt in (self._from_peers, self._from_checkpoint):
            try:
                return attempt(vllm_config, model_config, prefix)
            except NotStreamed as why:
                log.info("weights do not come %s: %s", _WAYS[attempt.__name__], why)
                reasons.append(str(why))
            registered.restore()
            gc.collect()
        if self._options.load_from == "peers":
            raise ConfigError(
                f"no peer gave the weights: {'; '.join(reasons)}",
                remedy="start another engine of this model, or load_from: auto",
            )
        log.info("weights come from disk: %s", "; ".join(reasons))
        return self._disk.load_model(vllm_config, model_config, prefix)

    def _left(self) -> float:
        """Seconds that streaming may still take. Raises NotStreamed where there are none."""
        left = self._until - self._clock()
        if left <= 0:
            raise NotStreamed(f"LIMIT_S is over ({self._options.limit_s:g} s)")
        return left

    def _ready(self) -> tuple[Streaming, Identity, Arena]:
        """Raises NotStreamed where nothing can be streamed at all."""
        if self._options.load_from == "disk":
            raise NotStreamed("load_from is disk")
        if _bound is None or _bound.streaming is None or _bound.identity is None:
            raise NotStreamed(_bound.why if _bound else "this worker is not vNPU's")
        return _bound.streaming, _bound.identity, _bound.arena

    def _from_checkpoint(self, vllm_config: Any, model_config: Any, prefix: str) -> Any:
        """Kernels differ: the checkpoint's own tensors, which this engine's kernels lay out anew."""
        streaming, _, _ = self._ready()
        room = Room()
        try:
            if not streaming.known_checkpoint():
                raise NotStreamed("no running engine serves the checkpoint")
            streamed = streaming.fetch_checkpoint(room, self._left())
        except TransferError as error:
            raise NotStreamed(str(error)) from None
        log.info("%d bytes of checkpoint streamed in %.2f s from %s", streamed.manifest.size, streamed.seconds,
                 streamed.blocks)  # fmt: skip
        return _FromRoom(self._disk.load_config, room).load_model(vllm_config, model_config, prefix)

    def _from_peers(self, vllm_config: Any, model_config: Any, prefix: str) -> Any:
        streaming, identity, arena = self._ready()
        try:
            if not streaming.known(identity.family):
                raise NotStreamed(_because("no running engine has them", streaming.mismatches(identity)))
            model = self._build(vllm_config, model_config, prefix)
            found = table(model, arena)
            identity = laid_out(identity, found)
            streamed = streaming.fetch(identity, found, self._left())
        except StreamFailed as failed:
            told = [] if failed.reasons else streaming.mismatches(identity)
            raise NotStreamed(_because(str(failed), told)) from None
        except (TransferError, Unstreamable) as error:
            raise NotStreamed(str(error)) from None  # the traceback would keep the model alive
        log.info("%d bytes streamed in %.2f s from %s", streamed.manifest.size, streamed.seconds, streamed.blocks)
        return model

    def _build(self, vllm_config: Any, model_config: Any, prefix: str) -> Any:
        """The model laid out for its kernels, without weights."""
        device = torch.device(self.load_config.device or vllm_config.device_config.device)
        with set_default_torch_dtype(model_config.dtype), device:
            model = self.create_model(vllm_config, model_config, prefix)
            _make_distinct(model)
            process_weights_after_loading(model, model_config, device)
        gc.collect()
        return model.eval()


def _make_distinct(model: torch.nn.Module) -> None:
    """vLLM ties the output head to the embedding where it finds them equal after loading
    (`maybe_retie_word_embeddings`): what a checkpoint keeps apart must not look equal here."""
    for n, parameter in enumerate(model.parameters()):
        if parameter.numel() and parameter.is_contiguous():
            parameter.data.view(-1)[0] = n % 100


def _because(why: str, told: list[str]) -> str:
    return f"{why} [{'; '.join(told)}]" if told else why


class _Registered:
    """What building a model leaves in vLLM's configuration: a second build would find its own names taken
    ("Duplicate layer name")."""

    def __init__(self, vllm_config: Any) -> None:
        self._compilation = vllm_config.compilation_config
        self._layers = dict(self._compilation.static_forward_context)
        self._experts = list(self._compilation.static_all_moe_layers)

    def restore(self) -> None:
        self._compilation.static_forward_context.clear()
        self._compilation.static_forward_context.update(self._layers)
        self._compilation.static_all_moe_layers[:] = self._experts
