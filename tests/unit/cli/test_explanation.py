"""Why, and why at an earlier revision, from what stands in etcd."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from coordinator.cli.explanation import explain, sentences
from coordinator.cli.watch import understood
from coordinator.core.model import Bytes, Decision, Holder, Order, Spec
from coordinator.errors import ConfigError, VnpuError
from coordinator.picture import Picture
from coordinator.store import keys
from coordinator.store.base import KeyValue, Listing
from coordinator.store.codec import encode

RING = 1024


def standing(key: str, value: Decision | Spec, revision: int) -> KeyValue:
    return KeyValue(key, encode(value), 1, revision)


def decided(n: int, order: Order, revision: int, engine: str = "a-1") -> KeyValue:
    decision = Decision(n=n, at=100.0 + n, order=order, engine=engine, devices=("n/0",), cause=f"cause {n}")
    return standing(keys.decision(n % RING), decision, revision)


@pytest.fixture
def picture() -> Picture:
    """Decision 1025 has overwritten decision 1, so that slots are not in order of time."""
    spec = Spec(
        holder=Holder("a-1", "x"), model="a", url="u", devices=("n/0",), pid=1, boot_id="b", footprint=Bytes()
    )  # fmt: skip
    found = Picture()
    kvs = (
        standing(keys.spec("a-1"), spec, 5),
        decided(1025, Order.RESTORE, 40),
        decided(2, Order.OFFLOAD, 11),
        decided(3, Order.RESTORE, 20),
        decided(4, Order.RESTORE, 21, engine="b-1"),
    )
    found.list(Listing(kvs, 50))
    return found


def test_each_decision_has_its_revision(picture: Picture) -> None:
    assert [(told.n, told.revision) for told in explain(picture, "a")] == [(1025, 40), (3, 20), (2, 11)]


@pytest.mark.parametrize(("at", "numbers"), [(50, [1025, 3, 2]), (40, [1025, 3, 2]), (39, [3, 2]), (11, [2]), (10, [])])
def test_at_a_revision_only_what_had_taken_effect_tells(picture: Picture, at: int, numbers: list[int]) -> None:
    assert [told.n for told in explain(picture, "a", at)] == numbers


def test_the_newest_by_then_are_told_not_the_newest_of_all(picture: Picture) -> None:
    kvs = tuple(decided(n, Order.RESTORE, n + 100) for n in range(10, 30))
    picture.list(Listing((standing(keys.spec("a-1"), picture.of(Spec)["a-1"], 5), *kvs), 200))
    assert [told.n for told in explain(picture, "a", 115)] == [15, 14, 13, 12, 11]


def test_a_revision_to_come_and_an_unknown_model_are_told_apart(picture: Picture) -> None:
    with pytest.raises(ConfigError, match=r"not come to revision 51.*up to 50"):
        explain(picture, "a", 51)
    with pytest.raises(VnpuError, match=r"no engine of z is known.*known are: a"):
        explain(picture, "z", 20)


def test_in_sentences(picture: Picture) -> None:
    out = io.StringIO()
    console = Console(file=out, width=160)
    console.print(sentences(explain(picture, "a", 11), "a", 11))
    console.print(sentences(explain(picture, "a", 10), "a", 10))
    said = out.getvalue()
    assert "a-1 left on n/0  decision 2, revision 11, " in said
    assert "because cause 2" in said
    assert "Nothing has been decided about a by revision 10, as far as decisions are kept." in said


def test_the_option_goes_with_why_alone() -> None:
    assert understood(["why", "a"], once=False, as_json=False, at=7).at == 7
    for words, at in ((["ps"], 7), (["why", "a"], 0)):
        with pytest.raises(ConfigError, match="goes with why"):
            understood(words, once=False, as_json=False, at=at)
