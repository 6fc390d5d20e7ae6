"""Prometheus metrics. What happens is counted as it happens; what is, is read at the scrape.

Labels are bounded: models, devices, engines, steps and status codes that exist, never what a client made up.
https://prometheus.io/docs/practices/naming/
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Generic, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from coordinator.core.commands import Command, Direct, Grant, Reclaim
from coordinator.core.events import Event, Granted, GrantRefused
from coordinator.core.model import Device, Order
from coordinator.core.view import State
from coordinator.history import KINDS, History, Noted, Switch
from coordinator.observed import Lag

WAIT_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
ETCD_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
SLO_WINDOW = 1000
"""Of a model's newest requests, for the share that met its objective."""
STEP_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_REASONS = {"room for": "room", "idle for": "idle", "asked for": "asked", "it is drained": "drained"}


M = TypeVar("M", Counter, Gauge, Histogram)


class _Children(Generic[M]):
    """A metric's children by their labels, for what every request counts: the library makes labels anew and takes a
    lock to find one."""

    def __init__(self, metric: M) -> None:
        self._metric: M = metric
        self._known: dict[tuple[str, ...], M] = {}

    def of(self, *labels: str) -> M:
        child = self._known.get(labels)
        if child is None:
            child = self._known[labels] = self._metric.labels(*labels)
        return child


class Metrics:
    """All metrics of one process, in a registry of their own. `view` is read at each scrape."""

    def __init__(self, view: Callable[[], State], clock: Callable[[], float] = time.monotonic) -> None:
        self._registry = CollectorRegistry()
        self.history = History()
        self._clock = clock
        self._heard_at = clock()
        self._lag = Lag(clock)
        self._kept: dict[str, deque[bool]] = {}
        """Of models with an objective: whether each of the newest requests met it."""
        self._make()
        self._make_latencies()
        self._registry.register(_Gauges(view, self.history.devices, self.history.model_of))
        self._registry.register(_Service(self._kept, lambda: self._clock() - self._heard_at))

    def _make(self) -> None:
        registry = self._registry
        self._depth = Gauge("vnpu_queue_depth", "Requests that wait at this gateway", ["model"], registry=registry)
        waits = Histogram(
            "vnpu_queue_wait_seconds",
            "From arrival at this gateway until handed to an engine",
            ["model"],
            buckets=WAIT_BUCKETS,
            registry=registry,
        )
        self._wait = _Children(waits)
        requests = Counter(
            "vnpu_requests",
            "Requests that ended at this gateway (status 499: the client left)",
            ["model", "status"],
            registry=registry,
        )
        self._requests = _Children(requests)
        self._decisions = Counter(
            "vnpu_decisions", "Decisions, by what became of their transaction", ["order", "outcome"], registry=registry
        )
        self._evictions = Counter("vnpu_evictions", "Offloads ordered", ["model", "reason"], registry=registry)
        self._quarantined = Gauge("vnpu_quarantined_values", "Values in etcd that do not decode", registry=registry)
        self._switch = Histogram(
            "vnpu_switch_seconds",
            "From the transaction of an order until the engine says it is done",
            ["model", "order"],
            buckets=STEP_BUCKETS,
            registry=registry,
        )
        self._wake = Histogram(
            "vnpu_wake_seconds",
            "Parts of a wake (path: cold from a start, warm from the host's copy, hot from pages that still held it)",
            ["model", "device", "path", "phase"],
            buckets=STEP_BUCKETS,
            registry=registry,
        )

    def _make_latencies(self) -> None:
        registry = self._registry
        self._offload = Histogram(
            "vnpu_offload_seconds",
            "Parts of an engine's leaving",
            ["model", "device", "step"],
            buckets=STEP_BUCKETS,
            registry=registry,
        )
        self._left = Counter(
            "vnpu_offloaded_bytes",
            "Bytes that were copied out as an engine left (kv: saved; weights: only where no host master was left)",
            ["model", "device", "kind"],
            registry=registry,
        )
        self._restored = Counter(
            "vnpu_restored_bytes",
            "Bytes that wakes brought back; over the seconds of the phase `copy`: throughput",
            ["model", "device", "path"],
            registry=registry,
        )
        ttft = Histogram(
            "vnpu_ttft_seconds",
            "From arrival at this gateway to the first byte of an answer, or to the whole of one that is not streamed",
            ["model"],
            buckets=WAIT_BUCKETS,
            registry=registry,
        )
        self._ttft = _Children(ttft)
        self._etcd = Histogram(
            "vnpu_etcd_seconds", "Calls to etcd", ["call", "outcome"], buckets=ETCD_BUCKETS, registry=registry
        )
        self._watch = Histogram(
            "vnpu_watch_lag_seconds",
            "From etcd's answer to a write of ours until our watch shows it",
            buckets=ETCD_BUCKETS,
            registry=registry,
        )
        self._shadow = Counter(
            "vnpu_shadow_decisions",
            "Evictions that the shadow policy judged, by whether it would have done the same",
            ["shadow", "agreed"],
            registry=registry,
        )

    def expose(self) -> tuple[bytes, str]:
        """(text, content type) for a scraper."""
        return generate_latest(self._registry), CONTENT_TYPE_LATEST

    def queue_depth(self, model: str, waiting: int) -> None:
        self._depth.labels(model).set(waiting)

    def request_waited(self, model: str, seconds: float) -> None:
        self._wait.of(model).observe(seconds)

    def request_finished(self, model: str, status: int) -> None:
        """`model` is empty where the request named none that exists. What we failed to serve met no objective."""
        self._requests.of(model, str(status)).inc()
        if status >= 500 and model in self._kept:
            self._kept[model].append(False)

    def answered(self, model: str, seconds: float, objective: float | None) -> None:
        """The first byte of an answer has gone out `seconds` after the request came."""
        self._ttft.of(model).observe(seconds)
        self.history.answered(model, seconds)
        if objective is None:
            self._kept.pop(model, None)
        else:
            self._kept.setdefault(model, deque(maxlen=SLO_WINDOW)).append(seconds <= objective)

    def etcd_called(self, call: str, outcome: str, seconds: float) -> None:
        self._etcd.labels(call, outcome).observe(seconds)

    def wrote(self, revision: int) -> None:
        """A write of ours has taken effect."""
        for seconds in self._lag.wrote(revision):
            self._watch.observe(seconds)

    def watched(self, revision: int) -> None:
        """The watch has shown everything up to `revision`."""
        self._heard_at = self._clock()
        for seconds in self._lag.reached(revision):
            self._watch.observe(seconds)

    def quarantined(self, count: int) -> None:
        self._quarantined.set(count)

    def ordered(self, command: Command, now: float) -> None:
        """The scheduler's order, before anything is sent."""
        self.history.ordered(command, now)

    def decided(self, command: Grant | Reclaim | Direct, outcome: Granted | GrantRefused, now: float) -> None:
        """A transaction's outcome, at `now` (monotonic seconds)."""
        decision = command.decision
        self._decisions.labels(decision.order, "granted" if isinstance(outcome, Granted) else "refused").inc()
        self.history.decided(command, outcome, now)
        if isinstance(outcome, Granted) and isinstance(command, Grant) and command.order is Order.OFFLOAD:
            self._evictions.labels(self.history.model_of(decision.engine), _reason(decision.cause)).inc()
            if decision.shadow:
                shadow, _, said = decision.shadow.partition(": ")
                self._shadow.labels(shadow, "yes" if said == "the same" else "no").inc()

    def saw(self, event: Event, now: float) -> list[Noted]:
        """Everything that went through the loop; returns what is worth a note."""
        noted = self.history.saw(event, now)
        for each in noted:
            if isinstance(each, Switch):
                self._switched(each)
        return noted

    def _switched(self, switch: Switch) -> None:
        self._switch.labels(switch.model, switch.order).observe(switch.seconds)
        device = ",".join(switch.devices)
        if switch.path:
            self._restored.labels(switch.model, device, switch.path).inc(switch.bytes)
            for step in switch.phases:
                self._wake.labels(switch.model, device, switch.path, step.name).observe(step.seconds)
        if switch.order is Order.OFFLOAD and not switch.error:
            for kind, size in (("kv", switch.kv), ("weights", switch.bytes - switch.kv)):
                self._left.labels(switch.model, device, kind).inc(size)
            for step in switch.phases:
                self._offload.labels(switch.model, device, step.name).observe(step.seconds)


class _Gauges(Collector):
    """What is, as of the scrape."""

    def __init__(self, view: Callable[[], State], devices: dict[str, Device], model_of: Callable[[str], str]) -> None:
        self._view = view
        self._devices = devices
        self._model_of = model_of

    def collect(self) -> Iterator[Metric]:
        view = self._view()
        yield GaugeMetricFamily("vnpu_leader", "1 on the coordinator that leads", value=float(view.leading))
        yield self._resident()
        yield self._host()
        yield self._drift()
        yield from self._seats(view)
        yield from self._capacity()
        yield self._phases(view)
        yield self._waiting(view)
        yield from self._work()

    def _work(self) -> Iterator[CounterMetricFamily]:
        """What daemons count, as of their last write: they start at zero when a daemon does."""
        labels = ["device", "step"]
        calls = CounterMetricFamily("vnpu_daemon_steps", "How often a daemon did it on a device", labels=labels)
        seconds = CounterMetricFamily("vnpu_daemon_seconds", "How long that took together", labels=labels)
        moved = CounterMetricFamily("vnpu_daemon_bytes", "How many bytes it was about", labels=labels)
        for name, device in self._devices.items():
            for work in device.work:
                calls.add_metric((name, work.name), work.count)
                seconds.add_metric((name, work.name), work.seconds)
                moved.add_metric((name, work.name), work.bytes)
        yield from (calls, seconds, moved)

    def _capacity(self) -> Iterator[GaugeMetricFamily]:
        family = GaugeMetricFamily("vnpu_device_capacity_bytes", "What engines may hold together", labels=["device"])
        cached = GaugeMetricFamily("vnpu_device_cached_bytes", "Free, and still holding weights", labels=["device"])
        for name, device in self._devices.items():
            family.add_metric((name,), device.capacity)
            cached.add_metric((name,), device.cached)
        yield from (family, cached)

    def _phases(self, view: State) -> GaugeMetricFamily:
        labels = ["model", "engine", "phase"]
        family = GaugeMetricFamily("vnpu_engine_phase", "1 for the phase that an engine is in", labels=labels)
        for engine in view.engines:
            family.add_metric((engine.model, engine.id, engine.phase or "silent"), 1)
        return family

    def _waiting(self, view: State) -> GaugeMetricFamily:
        family = GaugeMetricFamily(
            "vnpu_model_waiting", "Requests that wait for a model, at all gateways and engines", labels=["model"]
        )
        for model in view.models:
            family.add_metric((model.id,), model.waiting)
        return family

    def _resident(self) -> GaugeMetricFamily:
        family = GaugeMetricFamily("vnpu_resident_bytes", "Bytes in device memory", labels=["device", "model", "kind"])
        totals: dict[tuple[str, str, str], int] = {}
        for name, device in self._devices.items():
            for owner in device.owners:
                for kind in KINDS:
                    label = (name, self._model_of(owner.holder.engine), kind)
                    totals[label] = totals.get(label, 0) + int(getattr(owner.bytes, kind))
        for label, total in totals.items():
            family.add_metric(label, total)
        return family

    def _host(self) -> GaugeMetricFamily:
        """One value a node: all its devices report the same pool."""
        family = GaugeMetricFamily("vnpu_host_bytes", "Host memory of a node", labels=["node", "kind"])
        nodes = {name.rpartition("/")[0]: device.host_ram for name, device in self._devices.items()}
        for node, ram in nodes.items():
            for kind, value in (("total", ram.total), ("masters", ram.masters), ("saved_kv", ram.saved_kv)):
                family.add_metric((node, kind), value)
        return family

    def _drift(self) -> GaugeMetricFamily:
        family = GaugeMetricFamily(
            "vnpu_ledger_drift_bytes", "Measured use of a device minus what its owners are charged", labels=["device"]
        )
        for name, device in self._devices.items():
            family.add_metric((name,), device.drift + device.capacity - device.free_measured - device.charged)
        return family

    def _seats(self, view: State) -> Iterator[GaugeMetricFamily]:
        """The fence is a value, not a label: a label would make a new series at every switch."""
        holder = GaugeMetricFamily("vnpu_token_holder_info", "Who was granted last", labels=["device", "engine"])
        fence = GaugeMetricFamily("vnpu_token_fence", "Revision of a device's seat", labels=["device"])
        for device in view.devices:
            if device.seat is not None:
                holder.add_metric((device.id, device.seat.holder.engine), 1)
                fence.add_metric((device.id,), device.seat_revision)
        yield holder
        yield fence


class _Service(Collector):
    """How well this process serves and hears, as of the scrape."""

    def __init__(self, kept: Mapping[str, deque[bool]], silence: Callable[[], float]) -> None:
        self._kept = kept
        self._silence = silence

    def collect(self) -> Iterator[GaugeMetricFamily]:
        family = GaugeMetricFamily(
            "vnpu_slo_attainment_ratio",
            f"Share of the newest {SLO_WINDOW} requests here that met their model's ttft_objective",
            labels=["model"],
        )
        for model, kept in self._kept.items():
            family.add_metric((model,), sum(kept) / len(kept))
        yield family
        yield GaugeMetricFamily(
            "vnpu_watch_silence_seconds",
            "Since the watch was heard; the leader's beat is once a second",
            self._silence(),
        )


def _reason(cause: str) -> str:
    """A decision's cause as a bounded label."""
    return next((label for start, label in _REASONS.items() if cause.startswith(start)), "other")
