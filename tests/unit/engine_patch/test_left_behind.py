"""Under which name weights are left, and when nothing of them may be used again."""

from __future__ import annotations

from engine_patch.left_behind import LeftBehind


class Pieces:
    """Of `engine_patch.pieces.Pieces`: whether samples are as they were."""

    def __init__(self) -> None:
        self.as_sealed = True

    def same(self, chunks: object) -> bool:
        return self.as_sealed


def test_each_departure_has_a_name_of_its_own() -> None:
    left = LeftBehind(Pieces())  # type: ignore[arg-type]
    first = left.leave(whole=True)
    assert first == left.name
    assert left.leave(whole=True) not in ("", first)
    left.forget()
    assert left.name == ""


def test_what_had_not_come_back_whole_is_not_named() -> None:
    left = LeftBehind(Pieces())  # type: ignore[arg-type]
    assert left.leave(whole=True)
    assert left.leave(whole=False) == left.name == ""


def test_a_sample_that_differs_ends_it_for_good() -> None:
    pieces = Pieces()
    left = LeftBehind(pieces)  # type: ignore[arg-type]
    assert left.confirm({1, 2}) == {1, 2}
    pieces.as_sealed = False
    assert left.confirm(set()) == set()
    assert left.leave(whole=True)
    assert left.confirm({1, 2}) == set()
    assert left.leave(whole=True) == ""
