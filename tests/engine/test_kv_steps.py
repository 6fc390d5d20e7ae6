"""Our KV connector between vLLM's own scheduler calls and either of its model runners."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from engine_patch import spin
from engine_patch.kv_bookings import Bookings, Shape
from tests.helpers.wires import TRUST
from transfer.kv.orders import Orders
from transfer.kv.station import Results

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch deprecates what it imports itself
    from vllm.distributed.kv_transfer import kv_transfer_state
    from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorRole
    from vllm.v1.worker import kv_connector_model_runner_mixin
    from vllm.v1.worker.gpu import kv_connector as gpu_kv_connector
    from vllm.v1.worker.kv_connector_model_runner_mixin import KVConnectorModelRunnerMixin

    from engine_patch.kv_connector import IDLE_STEP_S, VnpuConnector

pytestmark = pytest.mark.engine

SHAPE = Shape("f" * 64, (8,), 4, mla=False, blocks=16)


class Station:
    """`waits`: for how long the model's thread was to wait, each time."""

    def __init__(self) -> None:
        self.waits: list[float] = []

    def perform(self, orders: Orders) -> None: ...

    def collect(self, wait_s: float = 0.0) -> Results:
        self.waits.append(wait_s)
        return Results()


@pytest.fixture
def station() -> Station:
    return Station()


@pytest.fixture
def connector(monkeypatch: pytest.MonkeyPatch, station: Station) -> Iterator[VnpuConnector]:
    """Both of its halves, where vLLM's runners find it; without a forward context, which it does not look at."""
    made: Any = object.__new__(VnpuConnector)
    made._role, made._bookings, made._station = KVConnectorRole.WORKER, Bookings(SHAPE, TRUST), station
    made._connector_metadata, made._keeps_parts, made._failed_blocks, made._idle = None, True, set(), False
    monkeypatch.setattr(kv_transfer_state, "_KV_CONNECTOR_AGENT", made)
    for runner in (kv_connector_model_runner_mixin, gpu_kv_connector):
        monkeypatch.setattr(runner, "get_forward_context", lambda: None)
        monkeypatch.setattr(runner, "set_forward_context", lambda *_: contextlib.nullcontext())
    yield made
    spin.lull(False)


class V1:
    """`GPUModelRunner`, as far as connectors go."""

    def __init__(self, connector: VnpuConnector) -> None: ...

    def forward(self, step: Any) -> None:
        with KVConnectorModelRunnerMixin._get_kv_connector_output(step):
            pass

    def no_forward(self, step: Any) -> None:
        KVConnectorModelRunnerMixin.kv_connector_no_forward(step, SimpleNamespace())


class V2:
    """The same of vLLM's second model runner."""

    def __init__(self, connector: VnpuConnector) -> None:
        self._active: Any = object.__new__(gpu_kv_connector.ActiveKVConnector)
        self._active.kv_connector, self._active.vllm_config = connector, SimpleNamespace()
        self._active._disabled, self._active._pending_load_kwargs = False, None

    def forward(self, step: Any) -> None:
        self._active.pre_forward(step, SimpleNamespace(idx_mapping=None, req_ids=["r"], num_tokens=1))
        self._active.post_forward(set())

    def no_forward(self, step: Any) -> None:
        self._active.no_forward(step)


Runner = type[V1] | type[V2]
runners = pytest.mark.parametrize("runner", [V1, V2])


def planned(connector: VnpuConnector, tokens: int) -> Any:
    """As the scheduler plans a step, in a process of its own."""
    step = SimpleNamespace(total_num_scheduled_tokens=tokens, has_sync_kv_loads=False, finished_req_ids=set())
    step.kv_connector_metadata = connector.build_connector_meta(step)
    return step


@runners
def test_a_step_that_computes_waits_for_no_transfer(runner: Runner, connector: VnpuConnector, station: Station) -> None:
    runner(connector).forward(planned(connector, 1))
    assert station.waits == [0.0]


@runners
def test_a_step_without_forward_pass_waits_for_the_next_end(
    runner: Runner, connector: VnpuConnector, station: Station
) -> None:
    runner(connector).no_forward(planned(connector, 0))
    assert station.waits == [IDLE_STEP_S]


@runners
def test_a_worker_does_not_spin_while_its_steps_compute_nothing(runner: Runner, connector: VnpuConnector) -> None:
    idle, work = planned(connector, 0), planned(connector, 1)
    assert not spin._lull
    runner(connector).no_forward(idle)
    assert spin._lull
    runner(connector).forward(work)
    assert not spin._lull


def test_the_scheduler_does_not_spin_for_them_either(connector: VnpuConnector) -> None:
    planned(connector, 0)
    assert spin._lull
    planned(connector, 1)
    assert not spin._lull
