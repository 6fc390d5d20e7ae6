"""What is counted, and what a scrape reads."""

from __future__ import annotations

import pytest

from coordinator.core.commands import Grant, SeatAt
from coordinator.core.events import Changed, DeviceSeen, Granted, GrantRefused, Listed, ResidencySeen, SpecSeen
from coordinator.core.model import (
    Bytes,
    Decision,
    Device,
    DeviceId,
    EngineId,
    Fence,
    Holder,
    HostRam,
    Order,
    Owner,
    Phase,
    Residency,
    Seat,
    Spec,
    Step,
    Work,
)
from coordinator.core.view import DeviceState, State
from coordinator.metrics import Metrics

A = Holder("e", "1")
D = DeviceId("local/0")
SPEC = Spec(
    holder=A, model="m", url="http://127.0.0.1:1", devices=(D,), pid=1, boot_id="b", footprint=Bytes(weights=60)
)
DEVICE = Device(
    driver="host",
    capacity=100,
    chunk=1,
    epoch="x",
    owners=(Owner(A, Bytes(weights=60, kv=5)),),
    host_ram=HostRam(1000, 60, 5),
    free_measured=30,
    work=(Work("wipe", 2, 0.5, 64),),
)


class Scrape:
    """Metrics that have seen one engine on one device."""

    def __init__(self) -> None:
        seat = Seat(holder=A, lease=1, order=Order.RESTORE, bytes=60, limit_s=60)
        device = DeviceState(D, True, 100, 65, "", seat=seat, seat_revision=42)
        self.metrics = Metrics(lambda: State(leading=True, epoch="x", revision=1, devices=(device,)))
        facts = (SpecSeen(EngineId("e"), SPEC, 1, 1), DeviceSeen(D, DEVICE, 2))
        self.metrics.saw(Listed(facts, 2), 0.0)

    def order(self, order: Order, revision: int, cause: str = "asked for by x") -> None:
        decision = Decision(n=1, at=0, order=order, engine="e", devices=(D,), cause=cause)
        grant = Grant(1, order, A, 1, 1, "x", "k", 1, (SeatAt(D, 1),), 60, 60.0, decision)
        self.metrics.ordered(grant, 9.5)
        self.metrics.decided(grant, Granted(1, revision) if revision else GrantRefused(1, "x"), 10.0)

    def answer(self, phase: Phase, revision: int, at: float, *, busy: bool = False, restored: int = 0) -> None:
        residency = Residency(
            holder=A,
            phase=phase,
            fence=Fence("x", revision),
            steps=(Step("copy", 0.2), Step("something new", 0.1)),
            restored=restored,
            busy=busy,
        )
        self.metrics.saw(Changed((ResidencySeen(EngineId("e"), residency, revision),), revision), at)

    def lines(self, name: str) -> dict[str, float]:
        text = self.metrics.expose()[0].decode()
        found = (line.rpartition(" ") for line in text.splitlines() if line.startswith(name))
        return {key: float(value) for key, _, value in found}


def test_a_restore_is_timed_from_its_transaction_to_the_engines_answer_under_its_fence() -> None:
    scrape = Scrape()
    scrape.order(Order.RESTORE, 7)
    scrape.answer(Phase.OFFLOADED, 5, 11.0)  # an older answer
    scrape.answer(Phase.RESTORING, 7, 11.0, busy=True)
    assert scrape.lines("vnpu_switch_seconds_count") == {}
    scrape.answer(Phase.RESIDENT, 7, 12.5, restored=60)
    scrape.answer(Phase.RESIDENT, 7, 13.0, restored=60)  # told again
    assert scrape.lines("vnpu_switch_seconds_sum") == {'vnpu_switch_seconds_sum{model="m",order="restore"}': 2.5}
    steps = scrape.lines("vnpu_wake_seconds_sum")
    assert steps == {
        f'vnpu_wake_seconds_sum{{device="local/0",model="m",path="warm",phase="{phase}"}}': seconds
        for phase, seconds in {"queue": 0.0, "evict": 0.0, "decision": 0.5, "copy": 0.2, "other": 0.1}.items()
    }


def test_an_offload_is_told_by_its_steps_and_by_what_went_out() -> None:
    scrape = Scrape()
    for revision, error in ((7, ""), (8, "no host memory")):
        scrape.order(Order.OFFLOAD, revision)
        steps = (Step("drain", 0.1), Step("save_kv", 0.2), Step("made up", 0.3), Step("too", 0.4))
        answer = Residency(
            holder=A, phase=Phase.OFFLOADED, fence=Fence("x", revision), steps=steps, kv_saved=8, d2h=60, error=error
        )
        scrape.metrics.saw(Changed((ResidencySeen(EngineId("e"), answer, revision),), revision), 12.0)
    assert scrape.lines("vnpu_offload_seconds_sum") == {
        f'vnpu_offload_seconds_sum{{device="local/0",model="m",step="{step}"}}': pytest.approx(seconds)
        for step, seconds in {"drain": 0.1, "save_kv": 0.2, "other": 0.7}.items()
    }
    assert scrape.lines("vnpu_offloaded_bytes_total") == {
        f'vnpu_offloaded_bytes_total{{device="local/0",kind="{kind}",model="m"}}': size
        for kind, size in {"kv": 8, "weights": 60}.items()
    }
    assert scrape.lines("vnpu_wake_seconds_sum") == {}


def test_evictions_are_counted_by_why_and_only_when_granted() -> None:
    scrape = Scrape()
    scrape.order(Order.OFFLOAD, 0, "room for b: 1 request")
    scrape.order(Order.OFFLOAD, 8, "room for b: 1 request")
    scrape.order(Order.OFFLOAD, 9, "for a reason nobody thought of")
    assert scrape.lines("vnpu_evictions_total") == {
        'vnpu_evictions_total{model="m",reason="room"}': 1,
        'vnpu_evictions_total{model="m",reason="other"}': 1,
    }
    assert scrape.lines("vnpu_decisions_total") == {
        'vnpu_decisions_total{order="offload",outcome="granted"}': 2,
        'vnpu_decisions_total{order="offload",outcome="refused"}': 1,
    }


def test_a_scrape_reads_what_is() -> None:
    scrape = Scrape()
    assert scrape.lines("vnpu_leader") == {"vnpu_leader": 1}
    resident = scrape.lines("vnpu_resident_bytes")
    assert resident['vnpu_resident_bytes{device="local/0",kind="weights",model="m"}'] == 60
    assert resident['vnpu_resident_bytes{device="local/0",kind="kv",model="m"}'] == 5
    assert scrape.lines("vnpu_host_bytes")['vnpu_host_bytes{kind="masters",node="local"}'] == 60
    assert scrape.lines("vnpu_ledger_drift_bytes") == {'vnpu_ledger_drift_bytes{device="local/0"}': 5}
    assert scrape.lines("vnpu_token_holder_info") == {'vnpu_token_holder_info{device="local/0",engine="e"}': 1}
    assert scrape.lines("vnpu_token_fence") == {'vnpu_token_fence{device="local/0"}': 42}


def test_what_a_daemon_did_and_what_a_wake_brought_back_are_counted() -> None:
    scrape = Scrape()
    for what, value in (("steps", 2), ("seconds", 0.5), ("bytes", 64)):
        name = f"vnpu_daemon_{what}_total"
        assert scrape.lines(name) == {f'{name}{{device="local/0",step="wipe"}}': value}
    scrape.order(Order.RESTORE, 7)
    scrape.answer(Phase.RESIDENT, 7, 12.5, restored=60)
    restored = 'vnpu_restored_bytes_total{device="local/0",model="m",path="warm"}'
    assert scrape.lines("vnpu_restored_bytes_total") == {restored: 60}


def test_a_listing_forgets_what_it_does_not_name() -> None:
    scrape = Scrape()
    scrape.metrics.saw(Listed((), 9), 1.0)
    assert scrape.lines("vnpu_resident_bytes") == {}


def test_queues_and_requests() -> None:
    scrape = Scrape()
    scrape.metrics.queue_depth("m", 3)
    scrape.metrics.request_waited("m", 0.02)
    scrape.metrics.request_finished("m", 499)
    scrape.metrics.quarantined(2)
    assert scrape.lines("vnpu_queue_depth") == {'vnpu_queue_depth{model="m"}': 3}
    assert scrape.lines("vnpu_queue_wait_seconds_count") == {'vnpu_queue_wait_seconds_count{model="m"}': 1}
    assert scrape.lines("vnpu_requests_total") == {'vnpu_requests_total{model="m",status="499"}': 1}
    assert scrape.lines("vnpu_quarantined_values") == {"vnpu_quarantined_values": 2}


def test_the_share_of_requests_that_met_their_objective() -> None:
    scrape = Scrape()
    for seconds in (0.1, 0.2, 9.0):
        scrape.metrics.answered("m", seconds, 1.0)
    scrape.metrics.request_finished("m", 503)
    scrape.metrics.request_finished("m", 404)
    assert scrape.lines("vnpu_slo_attainment_ratio") == {'vnpu_slo_attainment_ratio{model="m"}': 0.5}
    assert scrape.metrics.history.ttfts["m"].p50 == 0.2
    scrape.metrics.answered("m", 9.0, None)  # no objective any more
    assert scrape.lines("vnpu_slo_attainment_ratio") == {}
    assert scrape.lines("vnpu_ttft_seconds_count") == {'vnpu_ttft_seconds_count{model="m"}': 4}


def test_silence_of_the_watch() -> None:
    now = 100.0
    metrics = Metrics(lambda: State(leading=True, epoch="x", revision=1), lambda: now)
    metrics.wrote(7)
    now = 102.5
    assert "vnpu_watch_silence_seconds 2.5" in metrics.expose()[0].decode()
    metrics.watched(7)
    text = metrics.expose()[0].decode()
    assert "vnpu_watch_silence_seconds 0.0" in text
    assert "vnpu_watch_lag_seconds_sum 2.5" in text
