"""The dashboard and the alert rules name only what a coordinator really exports, with labels that it really has."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from coordinator.core.model import Phase
from coordinator.core.policies.registry import make
from coordinator.core.scheduler import Scheduler
from coordinator.core.settings import Settings
from coordinator.store.memory import MemoryEtcd
from tests.helpers.coordinator import coordinator
from tests.helpers.stub_engine import node

FOLDER = Path(__file__).parents[2] / "docker" / "observability"
SUFFIXES = ("_bucket", "_count", "_sum", "_total", "_created")
_SELECTOR = re.compile(r"(vnpu_[a-z_]+)(?:\{([^}]*)\})?")
_BY = re.compile(r"by \(([^)]*)\)")
OUTSIDE = {"instance", "le"}
"""Labels that Prometheus adds."""


def dashboard() -> Iterator[tuple[str, str]]:
    """(title, expression) of every panel."""
    for panel in json.loads((FOLDER / "dashboard.json").read_text())["panels"]:
        for target in panel.get("targets", []):
            yield f"{panel['title']}: {target['refId']}", target["expr"]


def rules() -> list[dict[str, object]]:
    [group] = yaml.safe_load((FOLDER / "alerts.yaml").read_text())["groups"]
    return group["rules"]


EXPRESSIONS = [*dashboard(), *((str(rule["alert"]), str(rule["expr"])) for rule in rules())]


async def exported() -> dict[str, set[str]]:
    """What a coordinator exports that has just switched models: sample names, with the labels that were seen."""
    store = MemoryEtcd().client()
    settings = Settings(keep_alive=None, min_residency=0.0, max_wait=60.0, ttft_objective=30.0)
    core = Scheduler(settings, shadow=make("lru"))
    async with coordinator(store, scheduler=core) as c, node(store, {"a": 60, "b": 60}, 100) as n:
        await n["a"].until_phase(Phase.RESIDENT)
        for model in ("b", "a"):
            status, _ = await c.ask(model)
            assert status == 200
        text = (await c.get("/metrics")).decode()
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text):
        for suffix in ("", *SUFFIXES):
            found.setdefault(family.name + suffix, set())
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


async def test_every_name_and_label_in_dashboard_and_alerts_is_exported() -> None:
    found = await exported()
    for where, expression in EXPRESSIONS:
        used = _SELECTOR.findall(expression)
        assert used, where
        has = set().union(*(found.get(name, set()) for name, _ in used)) | OUTSIDE
        for name, labels in used:
            assert name in found, f"{where} names {name}"
            for label in re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", labels):
                assert label in found[name] | OUTSIDE, f"{where}: {name} has no label {label}"
        for label in ", ".join(_BY.findall(expression)).split(", "):
            assert not label or label in has, f"{where}: nothing there has a label {label}"


async def test_a_switch_leaves_its_figures() -> None:
    found = await exported()
    assert {"path", "phase", "model", "device"} <= found["vnpu_wake_seconds_bucket"]
    for name in ("vnpu_ttft_seconds_count", "vnpu_slo_attainment_ratio", "vnpu_etcd_seconds_count"):
        assert found[name], name
    assert found["vnpu_shadow_decisions_total"] == {"shadow", "agreed"}


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: str(rule["alert"]))
def test_an_alert_says_what_to_do(rule: dict[str, object]) -> None:
    assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
    assert rule["labels"] in ({"severity": "critical"}, {"severity": "warning"})
    assert set(rule["annotations"]) == {"summary", "description"}  # type: ignore[call-overload]
    expression = str(rule["expr"])
    assert expression.count("(") == expression.count(")")


def test_the_dashboard_has_a_place_for_every_panel() -> None:
    panels = json.loads((FOLDER / "dashboard.json").read_text())["panels"]
    places = [(p["gridPos"]["x"], p["gridPos"]["y"]) for p in panels]
    assert len(places) == len(set(places))
    assert all(p["gridPos"]["x"] + p["gridPos"]["w"] <= 24 for p in panels)
    assert len({p["id"] for p in panels}) == len(panels)


async def test_every_metric_is_documented() -> None:
    page = (FOLDER.parents[1] / "docs/operations.md").read_text()
    written = set(re.findall(r"`(vnpu_[a-z_]+)`", page))
    names = {name for name in await exported() if name.startswith("vnpu_") and not name.endswith(SUFFIXES)}
    assert {name for name in names if name not in written and f"{name}_total" not in written} == set()


def test_grafana_finds_its_data_source_and_the_dashboard_where_compose_puts_them() -> None:
    services = yaml.safe_load((FOLDER.parent / "compose.yaml").read_text())["services"]
    mounted = dict(volume.split(":")[:2] for volume in services["grafana"]["volumes"])
    [source] = yaml.safe_load((FOLDER / "grafana" / "datasources.yaml").read_text())["datasources"]
    [provider] = yaml.safe_load((FOLDER / "grafana" / "dashboards.yaml").read_text())["providers"]

    assert urlsplit(source["url"]).hostname in services
    assert source["type"] == "prometheus"
    assert source["isDefault"]
    assert Path(mounted["./observability/dashboard.json"]).parent == Path(provider["options"]["path"])
    assert mounted["./observability/grafana/datasources.yaml"].startswith("/etc/grafana/provisioning/datasources/")
    assert mounted["./observability/grafana/dashboards.yaml"].startswith("/etc/grafana/provisioning/dashboards/")
    for name in ("prometheus", "grafana"):
        ours = [volume.split(":")[0] for volume in services[name]["volumes"] if volume.startswith("./")]
        assert all((FOLDER.parent / path).exists() for path in ours)


def test_prometheus_scrapes_the_gateway_of_compose_by_a_name_that_it_answers_to() -> None:
    services = yaml.safe_load((FOLDER.parent / "compose.yaml").read_text())["services"]
    scrape = yaml.safe_load((FOLDER / "prometheus.yaml").read_text())
    [[target]] = [each["targets"] for job in scrape["scrape_configs"] for each in job["static_configs"]]

    assert target == "coordinator:8080"
    assert "coordinator" in services["coordinator"]["environment"]["VNPU_ENGINE_HOSTS"].split(",")
    assert scrape["rule_files"] == ["alerts.yaml"]
