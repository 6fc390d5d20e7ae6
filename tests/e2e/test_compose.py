"""`docker/compose.yaml`, built and run: real engines in containers of their own share one device."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.helpers.compose import OBSERVED, Stack

pytestmark = [pytest.mark.system, pytest.mark.engine, pytest.mark.timeout(2400)]

BUILD_S = 1500
START_S = 600
SHOWN_S = 60
"""An answer may overtake the engine's word in etcd that it is resident."""
STOP_ALL = """
import os, signal
def word(pid, name):
    try:
        return open(f"/proc/{pid}/{name}", "rb").read()
    except OSError:
        return b""
pids = [int(name) for name in os.listdir("/proc") if name.isdecimal()]
parent = {pid: int(word(pid, "stat").rpartition(b")")[2].split()[1]) for pid in pids if word(pid, "stat")}
found = {pid for pid in parent if b"--served-model-name=MODEL\\0" in word(pid, "cmdline")}
while grown := {pid for pid in parent if parent[pid] in found} - found:
    found |= grown
for pid in found:
    os.kill(pid, signal.SIGSTOP)
print(len(found))
"""
"""Run in the daemon's container, which sees the host's processes: stops an engine with all that it started."""


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    try:
        stack = Stack()
    except LookupError as error:
        pytest.fail(str(error))
    try:
        for service in ("etcd", "coordinator", "engine-a"):  # in turn: the last two share the stage that compiles
            stack.compose("build", service, timeout_s=BUILD_S)
        stack.compose("up", "-d", "--no-build", timeout_s=START_S)
        stack.until(lambda: sorted(stack.phases().values()) == ["offloaded", "resident"], "both engines up", START_S)
        yield stack
    finally:
        stack.down()
    assert stack.residue() == {}


def test_request_to_a_sleeping_model_wakes_it_and_the_other_leaves(stack: Stack) -> None:
    phases = stack.phases()
    awake = next(name for name in phases if phases[name] == "resident")
    asleep = next(name for name in phases if phases[name] == "offloaded")
    before = stack.complete(awake, "The memory of")

    other = stack.complete(asleep, "The memory of")

    assert other
    stack.until(lambda: stack.phases() == {awake: "offloaded", asleep: "resident"}, "the switch in the state", SHOWN_S)
    assert stack.complete(awake, "The memory of") == before
    stack.until(lambda: stack.phases() == {awake: "resident", asleep: "offloaded"}, "the switch back", SHOWN_S)
    decisions = stack.ask(f"{stack.admin}/v1/decisions")["decisions"]
    made = [(each["order"], each["engine"]) for each in reversed(decisions)]
    assert made[-4:] == [("offload", awake), ("restore", asleep), ("offload", asleep), ("restore", awake)]
    seen = stack.compose(
        "exec", "-T", "etcd", "etcdctl", "get", "--print-value-only", f"/vnpu/v1/engines/{awake}/residency"
    )
    assert '"phase":"resident"' in seen


def test_an_engine_that_hangs_in_its_container_is_ended_when_its_memory_is_wanted(stack: Stack) -> None:
    """SO_PEERPIDFD and `pid: host`: the daemon's kill and its proof of death reach across PID namespaces."""
    phases = stack.phases()
    hung = next(name for name in phases if phases[name] == "resident")
    wanted = next(name for name in phases if name != hung)
    stopped = stack.compose("exec", "-T", "daemon", "python", "-c", STOP_ALL.replace("MODEL", hung))
    assert int(stopped.split()[-1]) >= 3

    assert stack.complete(wanted, "And then")

    stack.until(lambda: stack.phases()[wanted] == "resident", "the wake in the state", SHOWN_S)
    owners = [owner for device in stack.ask(f"{stack.admin}/v1/devices")["devices"] for owner in device["owners"]]
    assert [owner["holder"]["engine"] for owner in owners] == [wanted]


def test_prometheus_of_the_profile_scrapes_the_gateway_and_takes_the_rules(stack: Stack) -> None:
    """Grafana's image is not to be had everywhere; tests/unit/test_observability.py looks at what it would read."""
    stack.compose(*OBSERVED, "build", "prometheus", timeout_s=BUILD_S)
    stack.compose(*OBSERVED, "up", "-d", "--no-build", "prometheus", timeout_s=START_S)

    def value(query: str) -> str:
        found = stack.ask(f"{stack.prometheus}/api/v1/query?query={query}", timeout_s=10)["data"]["result"]
        return str(found[0]["value"][1]) if found else ""

    stack.until(lambda: value("vnpu_leader") == "1", "scraped", START_S)
    [group] = stack.ask(f"{stack.prometheus}/api/v1/rules", timeout_s=10)["data"]["groups"]
    assert len(group["rules"]) > 10
