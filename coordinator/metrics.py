"""Prometheus metrics. What happens is counted as it happens; what is, is read at the scrape.

Labels are bounded: models, devices, engines, steps and status codes that exist, never what a client made up.
https://prometheus.io/docs/practices/naming/
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily
from prometheus_client.registry import Collector

from coordinator.core.commands import Command, Grant, Reclaim
from coordinator.core.events import Event, Granted, GrantRefused
from coordinator.core.model import Device, Order
from coordinator.core.view import State
from coordinator.history import KINDS, History, Noted, Switch

WAIT_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
STEP_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_REASONS = {"room for": "room", "idle for": "idle", "asked for": "asked", "it is drained": "drained"}


class Metrics:
    """All metrics of one process, in a registry of their own. `view` is read at each scrape."""

    def __init__(self, view: Callable[[], State]) -> None:
        self._registry = CollectorRegistry()
        self.history = History()
        self._make()
        self._registry.register(_Gauges(view, self.history.devices, self.history.model_of))

    def _make(self) -> None:
        registry = self._registry
        self._depth = Gauge("vnpu_queue_depth", "Requests that wait at this gateway", ["model"], registry=registry)
        self._wait = Histogram(
            "vnpu_queue_wait_seconds",
            "From arrival at this gateway until handed to an engine",
            ["model"],
            buckets=WAIT_BUCKETS,
            registry=registry,
        )
        self._requests = Counter(
            "vnpu_requests",
            "Requests that ended at this gateway (status 499: the client left)",
            ["model", "status"],
            registry=registry,
        )
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

    def expose(self) -> tuple[bytes, str]:
        """(text, content type) for a scraper."""
        return generate_latest(self._registry), CONTENT_TYPE_LATEST

    def queue_depth(self, model: str, waiting: int) -> None:
        self._depth.labels(model).set(waiting)

    def request_waited(self, model: str, seconds: float) -> None:
        self._wait.labels(model).observe(seconds)

    def request_finished(self, model: str, status: int) -> None:
        """`model` is empty where the request named none that exists."""
        self._requests.labels(model, str(status)).inc()

    def quarantined(self, count: int) -> None:
        self._quarantined.set(count)

    def ordered(self, command: Command, now: float) -> None:
        """The scheduler's order, before anything is sent."""
        self.history.ordered(command, now)

    def decided(self, command: Grant | Reclaim, outcome: Granted | GrantRefused, now: float) -> None:
        """A transaction's outcome, at `now` (monotonic seconds)."""
        decision = command.decision
        self._decisions.labels(decision.order, "granted" if isinstance(outcome, Granted) else "refused").inc()
        self.history.decided(command, outcome, now)
        if isinstance(outcome, Granted) and isinstance(command, Grant) and command.order is Order.OFFLOAD:
            self._evictions.labels(self.history.model_of(decision.engine), _reason(decision.cause)).inc()

    def saw(self, event: Event, now: float) -> list[Noted]:
        """Everything that went through the loop; returns what is worth a note."""
        noted = self.history.saw(event, now)
        for each in noted:
            if isinstance(each, Switch):
                self._switched(each)
        return noted

    def _switched(self, switch: Switch) -> None:
        self._switch.labels(switch.model, switch.order).observe(switch.seconds)
        if switch.path:
            for step in switch.phases:
                device = ",".join(switch.devices)
                self._wake.labels(switch.model, device, switch.path, step.name).observe(step.seconds)


class _Gauges(Collector):
    """What is, as of the scrape."""

    def __init__(self, view: Callable[[], State], devices: dict[str, Device], model_of: Callable[[str], str]) -> None:
        self._view = view
        self._devices = devices
        self._model_of = model_of

    def collect(self) -> Iterator[GaugeMetricFamily]:
        view = self._view()
        yield GaugeMetricFamily("vnpu_leader", "1 on the coordinator that leads", value=float(view.leading))
        yield self._resident()
        yield self._host()
        yield self._drift()
        yield from self._seats(view)

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


def _reason(cause: str) -> str:
    """A decision's cause as a bounded label."""
    return next((label for start, label in _REASONS.items() if cause.startswith(start)), "other")
