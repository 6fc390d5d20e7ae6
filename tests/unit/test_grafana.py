"""Dashboard and provisioning have only fields that Grafana knows, of the kinds that it wants: here it cannot be run.

The fields of the dashboard: kinds/dashboard/dashboard_kind.cue, stat and timeseries in public/app/plugins/panel, all in
https://github.com/grafana/grafana; of the provisioning: https://grafana.com/docs/grafana/latest/administration/provisioning/
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import msgspec
import pytest
import yaml
from msgspec import Meta

from tests.helpers.prometheus import FOLDER

Text = Annotated[str, Meta(min_length=1)]
Width = Annotated[int, Meta(ge=1, le=24)]
UNITS = {"none", "s", "bytes", "percentunit", "ops", "reqps"}


class Known(msgspec.Struct, forbid_unknown_fields=True):
    """A field that is not named below is a fault."""


class GridPos(Known):
    h: Annotated[int, Meta(ge=1)]
    w: Width
    x: Annotated[int, Meta(ge=0, lt=24)]
    y: Annotated[int, Meta(ge=0)]


class DataSourceRef(Known):
    type: Literal["prometheus"]
    uid: Text


class Query(Known):
    """Of a Prometheus data source."""

    refId: Annotated[str, Meta(pattern="^[A-Z]$")]
    datasource: DataSourceRef
    expr: Text
    legendFormat: Text


class Stacking(Known):
    mode: Literal["none", "normal", "percent"]
    group: str


class Drawing(Known):
    """GraphFieldConfig."""

    fillOpacity: Annotated[int, Meta(ge=0, le=100)]
    lineWidth: Annotated[int, Meta(ge=0, le=10)]
    showPoints: Literal["auto", "never", "always"]
    stacking: Stacking | None = None


class Field(Known):
    unit: str
    min: float | None = None
    max: float | None = None
    noValue: str | None = None
    custom: Drawing | None = None


class FieldConfig(Known):
    defaults: Field
    overrides: Annotated[list[Any], Meta(max_length=0)]


class Reduce(Known):
    calcs: list[Literal["lastNotNull"]]


class StatOptions(Known):
    reduceOptions: Reduce


class Tooltip(Known):
    mode: Literal["single", "multi", "none"]
    sort: Literal["none", "asc", "desc"]


class Legend(Known):
    displayMode: Literal["list", "table", "hidden"]
    placement: Literal["bottom", "right"]


class GraphOptions(Known):
    tooltip: Tooltip
    legend: Legend


class Panel(Known):
    id: int
    title: Text
    description: Text
    datasource: DataSourceRef
    gridPos: GridPos
    fieldConfig: FieldConfig
    targets: Annotated[list[Query], Meta(min_length=1)]


class Stat(Panel, tag_field="type", tag="stat"):
    options: StatOptions


class TimeSeries(Panel, tag_field="type", tag="timeseries"):
    options: GraphOptions


class Row(Known, tag_field="type", tag="row"):
    id: int
    title: Text
    collapsed: Literal[False]
    gridPos: GridPos
    panels: Annotated[list[Any], Meta(max_length=0)]


class Variable(Known):
    """Of the type `datasource`: `query` is the plugin whose instances may be chosen."""

    name: Annotated[str, Meta(pattern=r"^\w+$")]
    type: Literal["datasource"]
    query: Literal["prometheus"]
    label: Text


class Variables(Known):
    found: list[Variable] = msgspec.field(name="list")


class Annotations(Known):
    found: list[Any] = msgspec.field(name="list")


class Span(Known):
    """`from` is a word of Python's."""

    start: Annotated[str, Meta(pattern=r"^now-[0-9]+[mhd]$")] = msgspec.field(name="from")
    to: Literal["now"]


class Dashboard(Known):
    title: Text
    uid: Annotated[str, Meta(pattern="^[a-zA-Z0-9_-]{1,40}$")]
    tags: list[str]
    timezone: Literal["browser", "utc"]
    schemaVersion: Annotated[int, Meta(ge=36)]
    editable: bool
    refresh: Annotated[str, Meta(pattern="^[0-9]+[smh]$")]
    time: Span
    templating: Variables
    annotations: Annotations
    panels: list[Stat | TimeSeries | Row]


class JsonData(Known):
    """Of a Prometheus data source."""

    timeInterval: Annotated[str, Meta(pattern="^[0-9]+[smh]$")]


class DataSource(Known):
    name: Text
    uid: Annotated[str, Meta(pattern="^[a-zA-Z0-9_-]{1,40}$")]
    type: Literal["prometheus"]
    access: Literal["proxy"]
    url: Annotated[str, Meta(pattern="^https?://")]
    isDefault: bool
    jsonData: JsonData


class DataSources(Known):
    apiVersion: Literal[1]
    datasources: list[DataSource]


class Folder(Known):
    path: Annotated[str, Meta(pattern="^/")]


class Provider(Known):
    name: Text
    type: Literal["file"]
    allowUiUpdates: bool
    options: Folder


class Providers(Known):
    apiVersion: Literal[1]
    providers: list[Provider]


_VARIABLE = re.compile(r"\$\{?(\w+)")
_LABEL = re.compile(r"\{\{(\w+)\}\}")
_BY = re.compile(r"by \(([^)]*)\)")


@pytest.fixture(scope="module")
def dashboard() -> Dashboard:
    return msgspec.json.decode((FOLDER / "dashboard.json").read_bytes(), type=Dashboard)


def queries(dashboard: Dashboard) -> Iterator[tuple[str, Query]]:
    for panel in dashboard.panels:
        if not isinstance(panel, Row):
            yield from ((panel.title, target) for target in panel.targets)


@pytest.mark.parametrize(("file", "kind"), [("datasources.yaml", DataSources), ("dashboards.yaml", Providers)])
def test_the_provisioning_is_as_grafana_documents_it(file: str, kind: type[Known]) -> None:
    msgspec.convert(yaml.safe_load((FOLDER / "grafana" / file).read_text()), kind)


def test_every_variable_of_the_dashboard_is_declared(dashboard: Dashboard) -> None:
    text = (FOLDER / "dashboard.json").read_text()
    assert set(_VARIABLE.findall(text)) == {variable.name for variable in dashboard.templating.found}


def test_every_query_asks_the_data_source_that_was_chosen(dashboard: Dashboard) -> None:
    [chosen] = dashboard.templating.found
    sources = [target.datasource.uid for _, target in queries(dashboard)]
    sources += [panel.datasource.uid for panel in dashboard.panels if not isinstance(panel, Row)]
    assert set(sources) == {f"${{{chosen.name}}}"}
    [provisioned] = yaml.safe_load((FOLDER / "grafana" / "datasources.yaml").read_text())["datasources"]
    assert provisioned["type"] == chosen.query
    assert provisioned["isDefault"]  # what the variable is until somebody chooses


def test_legends_name_labels_that_their_query_keeps(dashboard: Dashboard) -> None:
    for title, target in queries(dashboard):
        kept = set(", ".join(_BY.findall(target.expr)).split(", "))
        assert set(_LABEL.findall(target.legendFormat)) <= kept, title


def test_panels_of_more_queries_than_one_tell_them_apart(dashboard: Dashboard) -> None:
    for panel in dashboard.panels:
        if not isinstance(panel, Row):
            assert panel.fieldConfig.defaults.unit in UNITS
            assert len({target.refId for target in panel.targets}) == len(panel.targets)


def test_panels_lie_beside_each_other_not_on_each_other(dashboard: Dashboard) -> None:
    cells: set[tuple[int, int]] = set()
    for panel in dashboard.panels:
        at = panel.gridPos
        mine = {(x, y) for x in range(at.x, at.x + at.w) for y in range(at.y, at.y + at.h)}
        assert not mine & cells, panel.title
        assert at.x + at.w <= 24, panel.title
        cells |= mine


@pytest.mark.parametrize("key", ["expression", "panelz"])
def test_a_field_that_grafana_does_not_know_is_found(key: str) -> None:
    told = json.loads((FOLDER / "dashboard.json").read_text())
    told["panels"][1]["targets"][0][key] = "1"
    with pytest.raises(msgspec.ValidationError, match=key):
        msgspec.convert(told, Dashboard)
