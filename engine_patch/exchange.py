"""What the worker does for Netloader: opens the rank's `Streaming` and tells it what was loaded. An
engine without a transfer key, or whose weights cannot be streamed, goes on without, and says why.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any
from urllib.parse import urlsplit

import torch

from coordinator.errors import ConfigError
from engine_patch import settings
from engine_patch.checkpoint import folder
from engine_patch.checkpoints import Checkpoint
from engine_patch.desk import Desk
from engine_patch.family import boot_id
from engine_patch.inventory import identity, laid_out
from engine_patch.loader import Bound, bind
from engine_patch.loader_options import FORMAT, Options, read
from engine_patch.memory import Hands
from engine_patch.peers import Peers
from engine_patch.revision import revision
from engine_patch.settings import Birth
from engine_patch.streaming import Streaming
from engine_patch.tensors import Unstreamable, table
from engine_patch.together import Near, SharedStart
from transfer.errors import TransferError
from transfer.netloader.identity import Identity
from transfer.transports.trust import KEY_FILE, Trust, trust_from

log = logging.getLogger("vllm.vnpu.netloader")


class Exchange:
    """Made before the model is loaded. Nothing here ends an engine but an option that cannot be used."""

    def __init__(self, rank: int, vllm_config: Any, hands: Hands, device: str) -> None:
        """`device`: of this rank's tensors, as torch names it.

        Raises ConfigError where `--model-loader-extra-config` cannot be used.
        """
        birth = settings.inherited()
        load = vllm_config.load_config
        options = read(load.model_loader_extra_config or {}) if load.load_format == FORMAT else Options()
        self._arena = hands.weights.arena
        self._hands = hands
        self._streaming: Streaming | None = None
        self._identity: Identity | None = None
        why = ""
        try:
            trust = trust_from()
            if vllm_config.speculative_config is not None:
                why = "a draft model is loaded beside it"  # into the same pages, by the same loader
            elif trust is None:
                why = f"{KEY_FILE} is not set"
            else:
                where = folder(vllm_config.model_config)
                self._identity = identity(vllm_config, rank, where, options.model)
                checkpoint = Checkpoint(options.model or revision(where), where, named=bool(options.model))
                self._streaming = _open(rank, birth, options, trust, hands, checkpoint, device)
        except (TransferError, ConfigError) as error:
            why = str(error)
        if why:
            log.info("weights are neither served nor fetched: %s", why)
        bind(Bound(self._streaming, self._identity, self._arena, why))

    def loaded(self, model: torch.nn.Module) -> None:
        """The model is complete: others may have it."""
        if self._streaming is None or self._identity is None:
            return
        try:
            found = table(model, self._arena)
        except Unstreamable as why:
            log.info("weights are not served: %s", why)
            return
        whole = laid_out(self._identity, found)
        self._streaming.serve(whole, found)
        self._hands.elsewhere = Peers(self._streaming, whole, found)

    def stepping(self) -> AbstractContextManager[None]:
        """Within it the engine computes for a request."""
        return self._streaming.stepping() if self._streaming is not None else nullcontext()


def _open(
    rank: int, birth: Birth, options: Options, trust: Trust, hands: Hands, checkpoint: Checkpoint, device: str
) -> Streaming:
    host = options.listen_host or own_address(settings.endpoints())
    bound = os.sched_getaffinity(0)
    free = set(birth.cpus) - bound or set(birth.cpus)
    return Streaming(
        birth.engine, rank, options, Desk(birth.desk), trust, host, tuple(sorted(free)), hands.readers, hands.at,
        Near(f"{settings.required().node} {boot_id()}", hands.lend, hands.borrower.open, SharedStart(hands).together),
        checkpoint, device,
    )  # fmt: skip


def own_address(endpoints: Sequence[str]) -> str:
    """The address of this machine from which etcd is reached: the others of the cluster reach it there.

    Raises:
        TransferError: none is reached.
    """
    url = urlsplit(endpoints[0] if "://" in endpoints[0] else f"http://{endpoints[0]}")
    try:
        [(family, kind, *_, address), *_] = socket.getaddrinfo(url.hostname, url.port or 2379, type=socket.SOCK_DGRAM)
        with socket.socket(family, kind) as probe:
            probe.connect(address)  # UDP: nothing is sent
            return str(probe.getsockname()[0])
    except OSError as error:
        raise TransferError(f"{endpoints[0]}: {error}", remedy="give LISTEN_HOST") from error
