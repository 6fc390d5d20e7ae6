"""The alert rules and the scrape configuration in a real Prometheus, over a real coordinator."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import yaml

from coordinator.store.memory import MemoryEtcd
from tests.helpers.coordinator import coordinator
from tests.helpers.prometheus import FOLDER, prometheus

pytestmark = pytest.mark.system


async def test_a_real_prometheus_scrapes_a_coordinator_and_every_rule_is_evaluated(tmp_path: Path) -> None:
    async with coordinator(MemoryEtcd().client()) as one, prometheus(tmp_path, one.runtime.gateway_url) as p:
        await p.until_up()
        rules = await p.rules()
        [group] = yaml.safe_load((FOLDER / "alerts.yaml").read_text())["groups"]
        assert list(rules) == [rule["alert"] for rule in group["rules"]]
        assert {(rule["health"], rule.get("lastError", "")) for rule in rules.values()} == {("ok", "")}
        [leader] = await p.value("vnpu_leader")
        assert leader["value"][1] == "1"
        await p.until_state("VnpuNobodyLeads", "inactive")  # it is alarmed until the first scrape


async def test_it_is_alarmed_when_the_only_coordinator_is_gone(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        one = await stack.enter_async_context(coordinator(MemoryEtcd().client()))
        async with prometheus(tmp_path, one.runtime.gateway_url) as p:
            await p.until_up()
            await p.until_state("VnpuNobodyLeads", "inactive")
            await stack.aclose()
            await p.until_state("VnpuNobodyLeads", "pending", "firing")
