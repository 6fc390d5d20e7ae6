"""A growing log: whole lines, once each, from the place that was asked for."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from coordinator.cli.tail import Tail, begin_of_last


def test_lines_come_once_and_whole(tmp_path: Path) -> None:
    path = tmp_path / "log"
    tail = Tail(path)
    assert tail.read() == []
    path.write_text("one\ntw")
    assert tail.read() == ["one"]
    with path.open("a") as log:
        log.write("o\nthree")
    assert tail.read() == ["two"]
    assert tail.rest() == ["three"]
    assert tail.rest() == []


def test_a_log_that_another_took_the_place_of_is_read_from_its_beginning(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("old\n")
    tail = Tail(path)
    assert tail.read() == ["old"]
    path.replace(tmp_path / "log.1")
    path.write_text("new and longer\n")
    assert tail.read() == ["new and longer"]
    path.write_text("cut\n")
    assert tail.read() == ["cut"]


@given(lines=st.lists(st.text("ab", max_size=5), max_size=6), ended=st.booleans(), wanted=st.integers(0, 8))
def test_the_last_lines_are_those_of_the_whole_text(
    tmp_path_factory, lines: list[str], ended: bool, wanted: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "text"
    text = "\n".join(lines) + ("\n" if ended and lines else "")
    path.write_text(text)
    assert Tail(path, begin_of_last(path, wanted)).rest() == (text.splitlines()[-wanted:] if wanted else [])


def test_a_log_that_is_not_there_has_no_last_lines(tmp_path: Path) -> None:
    assert begin_of_last(tmp_path / "none", 5) == 0
