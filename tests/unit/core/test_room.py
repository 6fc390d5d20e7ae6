"""Who leaves: enough, nobody in vain, the cheapest set where cost is known."""

from __future__ import annotations

from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from coordinator.core.model import DeviceId, Holder, Order
from coordinator.core.room import MOST_EXACT, SPARE, choose, in_order
from coordinator.core.victims import Victim

DEVICE = DeviceId("n/0")


def victim(name: str, bytes_: int, seconds: float | None = None, *, value: float = 0.0, rank: int = 0) -> Victim:
    taken = {DEVICE: bytes_}
    return Victim(Holder(name, "1"), Order.OFFLOAD, taken, value, 0.0, "", rank=rank, seconds=seconds)


def chosen(need: int, *ready: Victim) -> list[str] | None:
    found = choose({DEVICE: need}, ready)
    return None if found is None else [each.holder.engine for each in found]


def test_without_costs_the_first_that_are_enough_and_none_in_vain() -> None:
    assert chosen(40, victim("a", 10), victim("b", 40), victim("c", 40)) == ["b"]
    assert chosen(45, victim("a", 10), victim("b", 40), victim("c", 40)) == ["a", "b"]
    assert chosen(100, victim("a", 10), victim("b", 40)) is None


def test_with_costs_two_cheap_ones_rather_than_a_dear_one() -> None:
    assert chosen(40, victim("a", 20, 0.1), victim("b", 20, 0.1), victim("c", 40, 5.0)) == ["a", "b"]
    assert chosen(40, victim("a", 20, 3.0), victim("b", 20, 3.0), victim("c", 40, 5.0)) == ["c"]


def test_memory_freed_beyond_the_need_is_worth_something() -> None:
    """40 bytes too many at the same cost are better than 5 too many."""
    assert chosen(40, victim("a", 45, 1.0), victim("b", 80, 1.0), victim("c", 80, 4.0)) == ["b"]


def test_a_higher_rank_stays_while_lower_ones_make_the_room() -> None:
    assert chosen(40, victim("a", 40, 9.0), victim("b", 40, 0.0, rank=1)) == ["a"]
    assert chosen(60, victim("a", 40, 9.0), victim("b", 40, 0.0, rank=1)) == ["a", "b"]


def test_many_go_by_the_cheapest_byte() -> None:
    many = [victim(f"v{n:02}", 10, float(n)) for n in range(MOST_EXACT + 5)]
    assert chosen(25, *reversed(many)) == ["v00", "v01", "v02"]


def test_who_holds_nothing_where_room_is_missing_stays() -> None:
    elsewhere = Victim(Holder("x", "1"), Order.OFFLOAD, {DeviceId("n/1"): 99}, -9.0, 0.0, "", seconds=0.0)
    assert chosen(40, elsewhere, victim("a", 40, 1.0)) == ["a"]


@given(
    st.lists(st.tuples(st.integers(1, 60), st.floats(0, 10)), min_size=1, max_size=6),
    st.integers(1, 120),
    st.booleans(),
)
def test_it_is_enough_and_nobody_is_in_vain_and_no_set_is_cheaper(
    pool: list[tuple[int, float]], need: int, known: bool
) -> None:
    ready = [victim(f"v{n}", bytes_, cost if known else None) for n, (bytes_, cost) in enumerate(pool)]
    found = choose({DEVICE: need}, ready)
    if found is None:
        assert sum(bytes_ for bytes_, _ in pool) < need
        return
    sizes = [each.bytes[DEVICE] for each in found]
    assert sum(sizes) >= need
    assert sum(sizes) - min(sizes) < need
    if known:
        total = sum(cost for _, cost in pool) / sum(bytes_ for bytes_, _ in pool)

        def price(chosen_: tuple[tuple[int, float], ...]) -> float:
            return sum(c for _, c in chosen_) - SPARE * total * (sum(b for b, _ in chosen_) - need)

        minimal = [
            each
            for count in range(1, len(pool) + 1)
            for each in combinations(pool, count)
            if sum(b for b, _ in each) >= need > sum(b for b, _ in each) - min(b for b, _ in each)
        ]
        mine = price(tuple(pool[int(each.holder.engine[1:])] for each in found))
        assert mine <= min(map(price, minimal)) + 1e-6


def test_in_order_takes_who_is_needed_on_any_device() -> None:
    first = Victim(Holder("x", "1"), Order.OFFLOAD, {DeviceId("n/1"): 5}, 0.0, 0.0, "")
    found = in_order({DEVICE: 10, DeviceId("n/1"): 5}, [first, victim("a", 10)])
    assert found is not None
    assert {each.holder.engine for each in found} == {"x", "a"}
