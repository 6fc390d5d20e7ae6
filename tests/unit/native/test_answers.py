"""What engines say of operations that they have left: once, when they are out of all of them, on their own lease."""

from __future__ import annotations

from coordinator.core import model
from coordinator.store import keys
from coordinator.store.codec import encode
from native.daemon.answers import Answers
from native.daemon.view import Engine
from native.fences import Holder
from native.protocol import Answer

ME = Holder("a", "n1")


def said(nonce: str = "n1") -> Answer:
    return Answer(encode(model.Residency(holder=model.Holder("a", nonce), phase=model.Phase.OFFLOADED)), 4)


def test_a_gang_has_answered_when_it_has_left_everywhere() -> None:
    answers, engines = Answers(), {"a": Engine(ME, 7, {})}
    answers.take(ME, said())
    assert answers.ready({ME}, engines) == ()
    answers.take(ME, said())
    (one,) = answers.ready({Holder("b", "n")}, engines)
    assert (one.put.key, one.put.value, one.put.lease, one.above) == (keys.residency("a"), said().residency, 7, 4)
    assert answers.ready((), engines) == ()


def test_who_is_not_who_the_spec_says_has_no_lease_to_put_it_on() -> None:
    answers = Answers()
    for engines in ({}, {"a": Engine(Holder("a", "n2"), 7, {})}, {"a": Engine(ME, 0, {})}):
        answers.take(ME, said())
        assert answers.ready((), engines) == ()


def test_nobody_speaks_for_another() -> None:
    answers = Answers()
    answers.take(ME, said("n2"))
    assert answers.ready((), {"a": Engine(ME, 7, {})}) == ()
