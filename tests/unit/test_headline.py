"""README's table of figures is the page of results, in fewer rows and plainer words."""

from __future__ import annotations

import importlib

import pytest

from benchmarks.headline import BEGIN, END, FOLDER, README, TOLD, placed, table

ROW = "| wake | `cold_over_wake` | 146 | 142–150 | 40 | ≥ 80 | ≥ 200 | floor |\n"
MISSED = "| gateway | `added_ttft_p99` | 0.18 | 0.165–0.264 | 17 | ≤ 0.1 | ≤ 0.05 | MISSED |\n"
NEITHER = "| wake | `kv_bytes` | 2.5e+07 |  |  |  |  |  |\n"
BARE = "| wake | `d2h_bytes` | 0 |  |  | ≤ 0 | ≤ 0 | aim |\n"


def test_rows_say_what_was_measured_and_what_was_wanted() -> None:
    rows = table(MISSED + NEITHER + BARE + ROW).splitlines()[2:]
    assert [row.split(" | ")[1:] for row in rows] == [
        ["146", "142–150", "≥ 80", "≥ 200 |"],
        ["0", "", "≤ 0", "≤ 0 |"],
        ["0.18 (missed)", "0.165–0.264", "≤ 0.1", "≤ 0.05 |"],
    ]
    assert "[wake](benchmarks/wake/README.md)" in rows[0]


def test_the_table_has_its_place_and_goes_in_twice() -> None:
    readme = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    once = placed(readme, ROW)
    assert once.startswith(f"before\n{BEGIN}\n\n| what |")
    assert once.endswith(f"{END}\nafter\n")
    assert placed(once, ROW) == once
    with pytest.raises(ValueError, match="no place"):
        placed("nothing", ROW)


def test_every_figure_that_is_told_has_a_benchmark_that_is_judged() -> None:
    for benchmark, name in TOLD:
        assert name in importlib.import_module(f"benchmarks.{benchmark}.goals").GOALS


def test_readme_tells_figures_of_the_results_and_no_others() -> None:
    readme = README.read_text()
    assert placed(readme, (FOLDER / "RESULTS.md").read_text()) == readme, "python -m benchmarks.headline"
