"""The page of results is what was kept of each benchmark's last run, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import page
from benchmarks.__main__ import names
from benchmarks.figures import Machine, Ratio, Result


def run(value: float = 0.9, benchmark: str = "restore") -> page.Run:
    ratios = {"pooled_over_limit": Ratio(value, (0.85, 0.95), 20)}
    machine = Machine(cores=2, cpu="some", memcpy_GBps=11.5, load=0.1)
    return page.Run("2026-11-20", Result(benchmark, "abc", machine, ratios, {"bytes": 1024.0}, ["huge pages: tmpfs"]))


def test_a_later_run_takes_the_place_of_the_one_before(tmp_path: Path) -> None:
    for each in (run(0.7), run(benchmark="wake"), run(0.9)):
        page.keep(each, tmp_path / "results")
    assert page.kept(tmp_path / "results") == [run(0.9), run(benchmark="wake")]


@pytest.mark.parametrize(("value", "meets"), [(0.96, "aim"), (0.9, "floor"), (0.7, "MISSED")])
def test_a_row_says_the_figure_its_bounds_and_which_it_meets(value: float, meets: str) -> None:
    lines = page.render([run(value)]).splitlines()
    assert "| restore | 2026-11-20 | abc | 2 cores of some | 11.5 |" in lines
    assert f"| restore | `pooled_over_limit` | {value} | 0.85–0.95 | 20 | ≥ 0.8 | ≥ 0.95 | {meets} |" in lines
    assert "| restore | `bytes` | 1.02e+03 |  |  |  |  |  |" in lines
    assert lines[-1] == "- restore: huge pages: tmpfs"


def test_the_page_is_what_was_kept() -> None:
    runs = page.kept()
    assert page.PAGE.read_text() == page.render(runs), "python -m benchmarks.page"
    assert {each.result.benchmark for each in runs} <= set(names())
