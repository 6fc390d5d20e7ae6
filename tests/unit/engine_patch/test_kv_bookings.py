"""The scheduler's side of KV transfers, without an engine."""

from __future__ import annotations

import msgspec
import pytest

from engine_patch.kv_bookings import OFFER, PARAM, Asked, Bookings, Shape, losses
from tests.helpers.wires import TRUST
from transfer.errors import NotTrusted, PeerViolation
from transfer.kv.layout import cpu_packed
from transfer.kv.orders import Order, Orders, Places
from transfer.kv.station import Missing, Results
from transfer.kv.ticket import Door, Ticket, prompt_digest, seal, unseal
from transfer.transports.trust import Trust

SHAPE = Shape("f" * 64, (8,), 4, mla=False, blocks=16)
DOOR = Door("127.0.0.1", 29000, "e" * 32, (cpu_packed(16, 8, 4, 64),))
PROMPT = tuple(range(20))


def bookings(shape: Shape = SHAPE) -> Bookings:
    made = Bookings(shape, TRUST)
    made.doors = (DOOR,)
    return made


def asked(params: dict[str, object] | None, name: str = "r", prompt: tuple[int, ...] | None = PROMPT) -> Asked:
    return Asked(name, prompt, (), params)


def ticket(blocks: tuple[int, ...] = (3, 1, 2), **changes: object) -> str:
    _, params = bookings().finished(asked({PARAM: OFFER}), whole=True, blocks=[blocks])
    assert params is not None
    return seal(msgspec.structs.replace(unseal(str(params[PARAM]), TRUST), **changes), TRUST)


def test_a_prompt_is_offered_where_it_is_asked_for() -> None:
    one = bookings()
    kept, params = one.finished(asked({PARAM: OFFER}), whole=True, blocks=[(3, 1, 2)])
    assert kept
    assert params is not None
    found = unseal(str(params[PARAM]), TRUST)
    ((owner, parts),) = one.orders().offers
    assert (owner, parts) == ("r", found.parts)
    assert (found.doors, found.tokens, found.prompt) == ((DOOR,), 20, prompt_digest(PROMPT))
    assert one.pending
    one.sent(["r"])
    assert not one.pending
    assert one.orders() == Orders()


@pytest.mark.parametrize(
    ("params", "whole", "prompt"),
    [(None, True, PROMPT), ({PARAM: OFFER}, False, PROMPT), ({PARAM: OFFER}, True, None), ({"x": OFFER}, True, PROMPT)],
)
def test_nothing_else_is_offered(params: dict[str, object] | None, whole: bool, prompt: tuple[int, ...] | None) -> None:
    one = bookings()
    assert one.finished(asked(params, prompt=prompt), whole=whole, blocks=[(3,)]) == (False, None)
    assert not one.orders().offers


def test_offers_leave_half_of_the_cache_to_others() -> None:
    one = bookings()
    assert [one.finished(asked({PARAM: OFFER}, n), whole=True, blocks=[(1, 2, 3)])[0] for n in "abc"] == [1, 1, 0]
    one.sent(["a"])
    assert one.finished(asked({PARAM: OFFER}, "d"), whole=True, blocks=[(1, 2, 3)])[0]


def test_a_ticket_is_used_once() -> None:
    """After a preemption, or a pull that failed, the request computes."""
    one = bookings()
    want = asked({PARAM: ticket()})
    assert one.matched(want, 0) == one.matched(want, 0) == 20
    one.allocated(want, 20, [(7, 8, 9)])
    one.allocated(want, 0, [(7, 8, 9, 10)])
    (order,) = one.orders().pulls
    assert (order.owner, order.wanted) == ("r", (Places((0, 1, 2), (7, 8, 9)),))
    assert one.matched(want, 0) == 0
    one.allocated(want, 0, [(5, 6, 7)])
    assert one.orders() == Orders()


def test_what_is_cached_here_is_left_out() -> None:
    one = bookings()
    want = asked({PARAM: ticket()})
    assert one.matched(want, 8) == 12
    one.allocated(want, 12, [(7, 8, 9)])
    assert one.orders().pulls[0].wanted == (Places((1, 2), (8, 9)),)


@pytest.mark.parametrize(
    "changes", [{"form": "0" * 64}, {"prompt": "0" * 64}, {"tokens": 19}, {"tokens": 25}, {"parts": ()}]
)
def test_a_ticket_that_does_not_fit_is_not_used(changes: dict[str, object]) -> None:
    one = bookings()
    text = ticket((3, 1)) if "parts" in changes else ticket(**changes)  # (3, 1): too few blocks for the prompt
    want = asked({PARAM: text})
    assert one.matched(want, 0) == 0
    one.allocated(want, 0, [(7, 8, 9)])
    (order,) = one.orders().pulls
    assert (order.owner, order.wanted) == ("", (Places((), ()),))


@pytest.mark.parametrize("value", ["", "no base64!", "AAAA", 5, None, ["x"]])
def test_what_is_no_ticket_is_ignored(value: object) -> None:
    one = bookings()
    assert one.matched(asked({PARAM: value}), 0) == 0
    assert one.orders() == Orders()


def test_images_are_a_part_of_the_prompt() -> None:
    one = bookings()
    assert one.matched(Asked("r", PROMPT, ("another image",), {PARAM: ticket()}), 0) == 0


def test_a_pull_under_way_is_aborted_with_its_request() -> None:
    one = bookings()
    want = asked({PARAM: ticket()})
    one.matched(want, 0)
    one.allocated(want, 20, [(7, 8, 9)])
    one.orders()
    one.finished(want, whole=False, blocks=[(7, 8, 9)])
    assert one.orders() == Orders(aborted=("r",))
    one.received(["r"])
    one.finished(want._replace(params=None), whole=False, blocks=[()])
    assert one.orders() == Orders()


def test_a_ticket_that_was_never_looked_at_is_let_go_of() -> None:
    one = bookings()
    one.finished(asked({PARAM: ticket()}), whole=False, blocks=[()])
    assert [order.owner for order in one.orders().pulls] == [""]


def test_a_ticket_is_sealed() -> None:
    text = ticket()
    assert isinstance(unseal(text, TRUST), Ticket)
    with pytest.raises(NotTrusted):
        unseal(text, Trust(b"another key, also 32 bytes long!"))
    with pytest.raises(NotTrusted):
        unseal(text[:60] + ("A" if text[60] != "A" else "B") + text[61:], TRUST)
    with pytest.raises(PeerViolation):
        unseal("ä", TRUST)


def test_orders_go_to_the_ranks_once() -> None:
    one = bookings()
    want = asked({PARAM: ticket()})
    one.matched(want, 0)
    one.allocated(want, 20, [(7, 8, 9)])
    assert isinstance(one.orders().pulls[0], Order)
    assert one.orders() == Orders()


def test_blocks_that_are_given_to_others_while_they_are_offered_are_told_of_once() -> None:
    one = bookings()
    one.finished(asked({PARAM: OFFER}, "a"), whole=True, blocks=[(3, 1, 0)])
    one.given([0, 2, 7])
    assert one.orders().freed == ()
    one.given([1, 2])
    assert one.orders().freed == (1,)
    assert one.orders().freed == ()
    one.sent(["a"])
    one.given([3])
    assert one.orders().freed == ()


def test_blocks_that_a_pull_writes_into_are_given_to_it() -> None:
    one = bookings()
    one.finished(asked({PARAM: OFFER}, "a"), whole=True, blocks=[(8, 1)])
    want = asked({PARAM: ticket()})
    assert one.matched(want, 0) == 20
    one.allocated(want, 20, [(7, 8, 9)])
    assert one.orders().freed == (8,)


def test_what_did_not_come_is_told_as_vllm_can_bear_it() -> None:
    """By block where a part is of use; else by request, whichever group lacks one."""
    one = Results(received={"a", "b"}, failed={"a"}, blocks={Missing(0, 7), Missing(0, 9)})
    assert losses(one, by_block=True) == ({7, 9}, set())
    for group in range(3):
        several = Results(received={"a", "b"}, failed={"b"}, blocks={Missing(group, 7)})
        assert losses(several, by_block=False) == (set(), {"b"})
    for by_block in (True, False):
        assert losses(Results(received={"a"}), by_block=by_block) == (set(), set())
