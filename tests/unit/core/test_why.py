"""Decisions in sentences."""

from __future__ import annotations

from coordinator.core.model import Candidate, Decision, Order
from coordinator.core.why import Told, why

CAUSE = "room for b: 1 request waits for 0.10 s; a: idle for 9.0 s"


def decision(n: int, order: Order, engine: str, **more: object) -> Decision:
    return Decision(n=n, at=100.0 + n, order=order, engine=engine, devices=("n/0",), cause=CAUSE, **more)  # type: ignore[arg-type]


LEFT = decision(
    1,
    Order.OFFLOAD,
    "a",
    candidates=(Candidate("c", 2.0, "idle for 1.0 s"), Candidate("a", 1.0, "idle for 9.0 s")),
    wanted="b",
    policy="lru",
    shadow="cost_aware: c",
)
CAME = decision(2, Order.RESTORE, "b", wanted="b", policy="lru")
OTHER = decision(3, Order.RECLAIM, "z")


def test_who_left_for_whom_and_who_was_looked_at() -> None:
    assert why("a", ["a"], [OTHER, LEFT, CAME]) == [
        Told(
            1,
            101.0,
            "a left on n/0 to make room for b",
            f"{CAUSE} (policy lru)",
            ("a: idle for 9.0 s", "c: idle for 1.0 s"),
            "cost_aware: c",
        )
    ]


def test_for_whom_it_was_done_newest_first() -> None:
    assert [told.what for told in why("b", ["b"], [LEFT, CAME, OTHER])] == [
        "b came back on n/0",
        "a left on n/0 to make room for b",
    ]
    assert [told.n for told in why("b", ["b"], [LEFT, CAME, OTHER], count=1)] == [2]


def test_who_was_looked_at_and_stayed() -> None:
    assert [told.what for told in why("c", ["c"], [LEFT, CAME])] == ["a left on n/0 to make room for b; c stayed"]
    assert why("nobody", [], [LEFT, CAME]) == []
