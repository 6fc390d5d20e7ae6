"""The pages say what the code says: links lead somewhere, tables name what there is."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import get_args

import msgspec
import pytest

from coordinator.store import keys
from native import protocol

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/**/*.md")])
PROTOCOL = (ROOT / "docs/protocol.md").read_text()
_LINK = re.compile(r"\]\(([^)#\s]*)(#[^)\s]*)?\)")


def _anchors(page: Path) -> set[str]:
    """As GitHub makes them from headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {"#" + re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    for target, anchor in _LINK.findall(page.read_text()):
        if target.startswith("http"):
            continue
        there = (page.parent / target).resolve() if target else page
        assert there.exists(), f"{page.name} links to {target}"
        assert not anchor or anchor in _anchors(there), f"{page.name} links to {target}{anchor}"


def test_every_fault_of_the_netloader_has_its_test() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (ROOT / "docs/netloader.md").read_text())

    assert len(named) > 10
    assert [each for each in named if f"def {each[1]}(" not in (ROOT / each[0]).read_text()] == []


def test_paths_of_the_contributing_table_exist() -> None:
    table = re.findall(r"^\| `([^`]+)` \|", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)

    assert table
    assert [path for path in table if not (ROOT / path).exists()] == []


def test_every_dependency_is_justified_with_its_range() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    page = (ROOT / "docs/dependencies.md").read_text()
    extras = [each for extra in project["project"]["optional-dependencies"].values() for each in extra]

    for requirement in [*project["project"]["dependencies"], *project["build-system"]["requires"], *extras]:
        name, bounds = re.fullmatch(r"([A-Za-z0-9_-]+)(.*)", requirement).groups()  # type: ignore[union-attr]
        lines = [line for line in page.splitlines() if line.startswith("|") and f"`{name}`" in line]
        assert lines, f"{name} is not justified in docs/dependencies.md"
        for bound in filter(None, bounds.split(",")):
            written = bound.replace(">=", "≥ ").replace("==", "== ").replace("<", "< ")
            assert any(written in line for line in lines), f"{name}: docs/dependencies.md does not say {written}"


@pytest.mark.parametrize(
    "key",
    [
        keys.EPOCH,
        keys.HEARTBEAT,
        keys.ELECTION,
        keys.daemon("<node>"),
        keys.device("<node>/<dev>"),
        keys.token("<node>/<dev>"),
        keys.seat("<node>/<dev>"),
        keys.spec("<id>"),
        keys.residency("<id>"),
        keys.load("<id>"),
        keys.seed("<id>", "<fingerprint>"),
        keys.demand("<gateway>", "<model>"),
        keys.policy("<model>"),
        keys.coordinator("<id>"),
    ],
)
def test_every_key_stands_in_the_table(key: str) -> None:
    name = keys.unescape(key.removeprefix(keys.ROOT)).rstrip("/")

    assert f"| `{name}" in PROTOCOL


@pytest.mark.parametrize("request_type", get_args(protocol.Request), ids=lambda each: each.__name__)
def test_every_daemon_call_stands_in_the_table_with_its_fields(request_type: type[msgspec.Struct]) -> None:
    fields = ", ".join(field.name for field in msgspec.structs.fields(request_type))

    assert f"| `{request_type.__name__}{{{fields}}}` |" in PROTOCOL


@pytest.mark.parametrize("reply_type", get_args(protocol.Reply), ids=lambda each: each.__name__)
def test_every_reply_is_named(reply_type: type[msgspec.Struct]) -> None:
    assert f"`{reply_type.__name__}" in PROTOCOL


@pytest.mark.parametrize("code", list(protocol.Code))
def test_every_refusal_is_explained(code: protocol.Code) -> None:
    assert f"`{code}`" in PROTOCOL
