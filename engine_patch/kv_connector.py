"""vLLM's KV connector for pulls between engines of any two tensor-parallel sizes (`docs/kv-transfer.md`).

    --kv-transfer-config '{"kv_connector": "VnpuConnector", "kv_connector_module_path": "engine_patch.kv_connector",
                           "kv_role": "kv_both", "kv_load_failure_policy": "recompute"}'

vLLM makes one in its scheduler and one in each worker. Both are thin: the scheduler's decides with `Bookings`, the
worker's has a `Station` on side threads; no call of vLLM's waits for a transfer. Works with and without the rest of
vNPU in the engine; what it needs is the transfer key (VNPU_TRANSFER_KEY_FILE).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
import torch
from vllm.distributed.kv_transfer import get_kv_transfer_group, has_kv_transfer_group
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorHandshakeMetadata,
    KVConnectorMetadata,
    KVConnectorRole,
    KVConnectorTransferResults,
    SupportsHMA,
)
from vllm.distributed.parallel_state import get_tensor_model_parallel_rank, get_tensor_model_parallel_world_size
from vllm.v1.request import RequestStatus

from coordinator.errors import ConfigError
from engine_patch import kv_caches, settings, spin, versions
from engine_patch.exchange import own_address
from engine_patch.kv_bookings import Asked, Bookings, losses
from engine_patch.kv_layout import written_blocks
from transfer.errors import TransferError
from transfer.kv.near import Near
from transfer.kv.orders import Orders
from transfer.kv.station import Station
from transfer.kv.supply import Me
from transfer.kv.ticket import Door
from transfer.transports.trust import KEY_FILE, Trust, trust_from

log = logging.getLogger("vllm.vnpu.transfer")

IDLE_STEP_S = 0.01
"""While a transfer is all there is to wait for, vLLM steps a thousand times a second, in each of its processes; a step
without a forward pass waits so long at most, and nobody spins for it, so that processors are left to the transfer."""
LOOPBACK = "127.0.0.1"


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`kv_connector_extra_config`. `listen_host`: the address that other engines reach; empty: the one towards etcd, or
    loopback without etcd. `listen_port`: rank r listens at this + r; 0: any free port. `transport`: how blocks come;
    auto: mapped from engines of this node, else over TCP."""

    listen_host: str = ""
    listen_port: int = 0
    transport: Literal["auto", "tcp", "mooncake"] = "auto"


@dataclass
class Handshake(KVConnectorHandshakeMetadata):  # type: ignore[misc]
    """A worker's door, for its scheduler. It goes out with every ticket, so nobody holds an old one."""

    door: Door


@dataclass
class Step(KVConnectorMetadata):  # type: ignore[misc]
    """What the scheduler tells the workers with a step. `idle`: it has no forward pass; vLLM's model runners do not say
    so, each calls a connector in its own way."""

    orders: Orders
    idle: bool


class VnpuConnector(KVConnectorBase_V1, SupportsHMA):  # type: ignore[misc]  # vLLM is not followed
    """See the module. Either role of an engine, or both."""

    def __init__(self, vllm_config: Any, role: KVConnectorRole, kv_cache_config: Any) -> None:
        """Raises ConfigError where something is missing or cannot work together."""
        super().__init__(vllm_config, role, kv_cache_config)
        versions.require_supported(versions.installed())
        self._config = vllm_config
        self._cache = kv_cache_config
        self._options = _options(self._kv_transfer_config.kv_connector_extra_config)
        self._trust = _trust()
        _refuse_what_cannot_work(vllm_config)
        self._shape = kv_caches.shape(vllm_config, kv_cache_config)
        self._keeps_parts = kv_caches.keeps_parts(vllm_config, kv_cache_config)
        self._bookings = Bookings(self._shape, self._trust)
        self._station: Station | None = None
        self._results = KVConnectorTransferResults()
        self._failed_blocks: set[int] = set()
        self._idle = False

    # ---- in the scheduler

    def set_xfer_handshake_metadata(self, metadata: Mapping[int, Handshake]) -> None:
        """All ranks listen; `metadata` is by tensor-parallel rank."""
        self._bookings.doors = self.arranged(tuple(metadata[rank].door for rank in sorted(metadata)))

    def arranged(self, doors: tuple[Door, ...]) -> tuple[Door, ...]:
        """The doors as they go into tickets, rank 0 first."""
        return doors

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int, bool]:
        """What a ticket offers beyond the local prefix cache; always loaded behind the forward passes."""
        found = self._bookings.matched(_asked(request), num_computed_tokens)
        return found, found > 0

    def get_loaded_kv_cache_group_ids(self, request: Any) -> tuple[int, ...]:
        return tuple(range(len(self._cache.kv_cache_groups)))

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        self._bookings.allocated(_asked(request), num_external_tokens, blocks.get_block_ids())

    def build_connector_meta(self, scheduler_output: Any) -> Step:
        if self._bookings.pending:
            self._bookings.given(written_blocks(scheduler_output, self._shape.block_tokens))
        idle = not scheduler_output.total_num_scheduled_tokens
        spin.lull(idle)
        return Step(self._bookings.orders(), idle)

    def update_connector_output(self, connector_output: Any) -> None:
        self._bookings.received(connector_output.finished_recving or ())
        self._bookings.sent(connector_output.finished_sending or ())

    def request_finished(self, request: Any, block_ids: list[int]) -> tuple[bool, dict[str, object] | None]:
        return self.request_finished_all_groups(request, (block_ids,))

    def request_finished_all_groups(
        self, request: Any, block_ids: tuple[list[int], ...]
    ) -> tuple[bool, dict[str, object] | None]:
        """A prefill engine's answer carries the ticket; its blocks stay until all readers are done, or none came."""
        whole = (
            request.status == RequestStatus.FINISHED_LENGTH_CAPPED
            and request.num_computed_tokens >= request.num_prompt_tokens
        )
        return self._bookings.finished(_asked(request), whole=whole, blocks=block_ids)

    def has_pending_block_frees(self) -> bool:
        return self._bookings.pending

    # ---- in a worker

    def register_kv_caches(self, kv_caches_by_layer: dict[str, torch.Tensor]) -> None:
        """The caches lie where they will stay: listen.

        Raises:
            ConfigError: a layout that cannot be pulled. TransferError: the port is taken.
        """
        tp, rank = get_tensor_model_parallel_world_size(), get_tensor_model_parallel_rank()
        me = Me(tp, rank, kv_caches.groups(self._cache, kv_caches_by_layer))
        host = self._options.listen_host or _own_address()
        port = self._options.listen_port + rank if self._options.listen_port else 0
        heads, mla = self._shape.num_kv_heads, self._shape.mla
        fabric = self._options.transport == "mooncake"
        self._station = Station(me, heads, self._trust, host, port, mla=mla, cpus=_free_cpus(), fabric=fabric)
        log.info("rank %d of %d offers and pulls KV blocks at %s:%d", rank, tp, host, self._station.door.port)

    def get_handshake_metadata(self) -> Handshake | None:
        return Handshake(self._station.door) if self._station is not None else None

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        """Hands this step's orders to the side thread."""
        step = self._get_connector_metadata()
        if self._station is not None and isinstance(step, Step):
            self._idle = step.idle
            spin.lull(step.idle)
            self._station.perform(step.orders)

    def get_transfer_results(self, finished_req_ids: set[str]) -> KVConnectorTransferResults:
        """One snapshot, at once where a forward pass ran. What did not come is told as `losses` says."""
        if self._station is None:
            return KVConnectorTransferResults()
        found = self._station.collect(IDLE_STEP_S if self._idle else 0.0)
        blocks, requests = losses(found, by_block=self._keeps_parts)
        self._failed_blocks |= blocks
        return KVConnectorTransferResults(found.sent, found.received, requests)

    def get_finished(self, finished_req_ids: set[str]) -> tuple[set[str] | None, set[str] | None]:
        found = self.get_transfer_results(finished_req_ids)
        return found.finished_sending or None, found.finished_recving or None

    def get_block_ids_with_load_errors(self) -> set[int]:
        failed, self._failed_blocks = self._failed_blocks, set()
        return failed

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Nothing to wait for: a request runs when all of its blocks are there."""

    def save_kv_layer(self, layer_name: str, kv_layer: torch.Tensor, attn_metadata: Any, **kwargs: Any) -> None:
        """Nothing to save: decode engines pull from the cache itself."""

    def wait_for_save(self) -> None:
        """Nothing to wait for."""

    def shutdown(self) -> None:
        if self._station is not None:
            self._station.close()
            self._station = None

    # ---- around sleep, called by our worker

    def share(self, near: Near) -> None:
        """The cache lies in pages of the node daemon: engines of this node may map them."""
        if self._station is not None and self._options.transport == "auto":
            self._station.share(near)

    def sleep(self, timeout_s: float) -> bool:
        """`Station.sleep`: the cache may go when it says so."""
        return self._station is None or self._station.sleep(timeout_s)

    def wake(self) -> None:
        """`Station.wake`: the cache is back, all of it."""
        if self._station is not None:
            self._station.wake()


def kv_pulls() -> VnpuConnector | None:
    """This worker's connector, where it is ours."""
    if not has_kv_transfer_group():
        return None
    found = get_kv_transfer_group()
    return found if isinstance(found, VnpuConnector) else None


def pulled_blocks(output: Any) -> set[int]:
    """Block ids that this step's orders (`SchedulerOutput.kv_connector_metadata`) will write into."""
    step = output.kv_connector_metadata
    orders = step.orders.pulls if isinstance(step, Step) else ()
    return {block for order in orders for places in order.wanted for block in places.blocks}


def _asked(request: Any) -> Asked:
    others = tuple(feature.identifier for feature in request.mm_features or ())
    return Asked(request.request_id, request.prompt_token_ids, others, request.kv_transfer_params)


def _options(given: Mapping[str, object]) -> Options:
    try:
        return msgspec.convert(dict(given), Options)
    except msgspec.ValidationError as error:
        raise ConfigError(
            f"kv_connector_extra_config: {error}",
            remedy="known: listen_host, listen_port, transport (auto, tcp, mooncake)",
        ) from None


def _trust() -> Trust:
    try:
        trust = trust_from()
    except TransferError as error:
        raise ConfigError(str(error), remedy=error.remedy) from error
    if trust is None:
        raise ConfigError(
            f"{KEY_FILE} is not set, and KV blocks go to nobody who cannot prove the key",
            remedy="make a file with openssl rand -hex 32, mode 600, and name it on both sides",
        )
    return trust


def _refuse_what_cannot_work(config: Any) -> None:
    parallel = config.parallel_config
    refusals = (
        (parallel.pipeline_parallel_size > 1, "--pipeline-parallel-size is over 1", "use tensor parallelism"),
        (parallel.decode_context_parallel_size > 1, "context parallelism", "leave it out"),
        (config.speculative_config is not None, "speculative decoding", "leave --speculative-config out"),
        (config.lora_config is not None, "adapters change what a prompt's KV is", "leave --enable-lora out"),
    )
    for wrong, what, remedy in refusals:
        if wrong:
            raise ConfigError(f"{what}: KV blocks cannot be pulled", remedy=remedy)


def _own_address() -> str:
    found = settings.endpoints()
    return own_address(found) if found else LOOPBACK


def _free_cpus() -> tuple[int, ...]:
    """Processors that this process' parent may use and vLLM has not bound this worker to; all, where none is left."""
    bound, all_ = os.sched_getaffinity(0), os.sched_getaffinity(os.getppid())
    return tuple(sorted(all_ - bound or all_))
