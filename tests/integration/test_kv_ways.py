"""Which way blocks come: mapped between engines of one node, through a fabric where both have chosen it, else over TCP.
Real stations; views are played over real shared memory, and so is Mooncake's engine."""

from __future__ import annotations

import asyncio
import ctypes
import logging
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.kv_peers import PlayedEngine
from tests.helpers.kv_stations import Engine, Node, engine, noise
from transfer.errors import TransferError
from transfer.kv import fabric
from transfer.kv.fabric import union
from transfer.kv.near import AGAIN_S, Borrow, Near, Neighbour, Region, Shown
from transfer.kv.reader import Span
from transfer.kv.tcp import TcpReader

PROMPT = list(range(30))
SRC, DST = [3, 1, 2, 9], [7, 4, 5, 11]


async def pull(prefill: Engine, decode: Engine, name: str = "d") -> set[int]:
    """One request's blocks, new bytes; those that did not come. What came is what was sent."""
    content = noise(prefill.groups, 4) ^ len(name)
    ticket = prefill.prefill(PROMPT, [SRC] * prefill.groups, content)
    decode.decode(name, PROMPT, ticket, [DST] * decode.groups, 0)
    failed = {block for result in await decode.results() for _, block in result.blocks}
    for result in await prefill.results():
        prefill.bookings.sent(result.sent)
    assert failed or decode.holds([DST] * decode.groups, content)
    return failed


def no_tcp(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(*_: object) -> int:
        raise TransferError("bytes over TCP")

    monkeypatch.setattr(TcpReader, "read", read)


@pytest.mark.parametrize(("prefill_tp", "decode_tp", "groups"), [(1, 1, 1), (2, 1, 2), (1, 2, 1), (4, 2, 1)])
async def test_one_node(monkeypatch: pytest.MonkeyPatch, prefill_tp: int, decode_tp: int, groups: int) -> None:
    """Each prefill rank's view is opened once by each decode rank, whatever number of groups and requests."""
    no_tcp(monkeypatch)
    node = Node()
    with engine(prefill_tp, groups, node=node) as prefill, engine(decode_tp, groups, node=node) as decode:
        assert await pull(prefill, decode) == set()
        assert await pull(prefill, decode, "e2") == set()
        opened = [view for view, _ in node.windows]
        assert len(opened) == (decode_tp if prefill_tp == 1 else prefill_tp)
    assert not any(window.is_open for _, window in node.windows)


@pytest.mark.parametrize("other", [None, Node("there")])
async def test_engines_of_two_nodes(other: Node | None) -> None:
    node = Node()
    with engine(2, node=node) as prefill, engine(1, node=other) as decode:
        assert await pull(prefill, decode) == set()
    with engine(2, node=other) as prefill, engine(1, node=node) as decode:
        assert await pull(prefill, decode) == set()
    assert node.windows == []


async def test_after_sleep_another_view_is_lent(monkeypatch: pytest.MonkeyPatch) -> None:
    """The daemon takes the old one back with the pages; nobody reads it afterwards."""
    node = Node()
    no_tcp(monkeypatch)
    with engine(1, node=node) as prefill, engine(1, node=node) as decode:
        assert await pull(prefill, decode) == set()
        (station,) = (rank.station for rank in prefill.ranks)
        assert await asyncio.to_thread(station.sleep, 5.0)
        node.revoke()
        assert not node.windows[0][1].is_open
        old = station._server.near
        assert old is not None
        station.wake()
        station.share(old._replace(lend=lambda lost: old.lend(node.windows[0][0])))
        assert await pull(prefill, decode, "e2") == set()
        assert len(node.windows) == 2


async def test_a_view_that_the_daemon_does_not_know_costs_the_way_only() -> None:
    node = Node()
    with engine(1, node=node) as prefill, engine(1, node=node) as decode:
        near = prefill.ranks[0].station._server.near
        assert near is not None
        near.lend(0)
        node.revoke()
        assert await pull(prefill, decode) == set()
        assert node.windows == []


class Asked:
    """A source, and the clock."""

    def __init__(self, *answers: Shown) -> None:
        self.answers = list(answers)
        self.asked: list[Borrow] = []
        self.now = 100.0

    def __call__(self, borrow: Borrow) -> Shown:
        self.asked.append(borrow)
        return self.answers.pop(0)

    def neighbour(self, node: Node) -> Neighbour:
        return Neighbour(Near(node.name, lambda lost: None, node.borrow), "it", lambda: self.now)


def test_who_got_nothing_asks_again_but_not_at_once() -> None:
    ask = Asked(Shown(0), Shown(7))
    one = ask.neighbour(Node())
    for after, times in ((0.0, 1), (AGAIN_S - 0.1, 1), (0.2, 2), (AGAIN_S - 0.1, 2)):
        ask.now += after
        assert one.reader(ask) is None
        assert len(ask.asked) == times
    ask.answers.append(Shown(0))
    ask.now += 0.2
    one.reader(ask)
    assert [borrow.lost for borrow in ask.asked] == [0, 0, 7]


def test_regions_beside_the_view_are_not_read() -> None:
    node = Node()
    with engine(1, node=node) as prefill:
        near = prefill.ranks[0].station._server.near
        assert near is not None
        view = near.lend(0)
        assert view is not None
        ask = Asked(Shown(view.lent.view, (Region(0, 1 << 40, 5),)))
        assert ask.neighbour(node).reader(ask) is None
        assert not node.windows[0][1].is_open


def test_a_closed_neighbour_maps_nothing() -> None:
    ask = Asked()
    one = ask.neighbour(Node())
    one.close()
    assert one.reader(ask) is None


# ---- a fabric


@pytest.fixture
def mooncake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fabric, "make_engine", lambda host: PlayedEngine())


@pytest.mark.usefixtures("mooncake")
@pytest.mark.parametrize(("prefill_tp", "decode_tp", "groups"), [(2, 1, 2), (1, 2, 1)])
async def test_both_have_chosen_it(
    monkeypatch: pytest.MonkeyPatch, prefill_tp: int, decode_tp: int, groups: int
) -> None:
    no_tcp(monkeypatch)
    with engine(prefill_tp, groups, fabric=True) as prefill, engine(decode_tp, groups, fabric=True) as decode:
        assert await pull(prefill, decode) == set()
        served = PlayedEngine.alive[prefill.ranks[0].station._server.reached.peer]
        address = prefill.ranks[0].memory[0][0].ctypes.data
        ctypes.memset(address, 1, 1)
        assert served.holds(address, 1)


@pytest.mark.usefixtures("mooncake")
@pytest.mark.parametrize("chosen", [(True, False), (False, True)])
async def test_one_has_chosen_it(caplog: pytest.LogCaptureFixture, chosen: tuple[bool, bool]) -> None:
    caplog.set_level(logging.INFO)
    with engine(1, fabric=chosen[0]) as prefill, engine(1, fabric=chosen[1]) as decode:
        assert await pull(prefill, decode) == set()
    assert ("has no fabric" in caplog.text) == chosen[1]


@pytest.mark.usefixtures("mooncake")
async def test_a_fabric_that_fails_costs_computing_and_is_made_anew() -> None:
    with engine(1, fabric=True) as prefill, engine(1, fabric=True) as decode:
        assert await pull(prefill, decode) == set()
        peer = prefill.ranks[0].station._server.reached.peer
        gone = PlayedEngine.alive.pop(peer)
        assert await pull(prefill, decode, "e2") == set(DST)
        PlayedEngine.alive[peer] = gone
        assert await pull(prefill, decode, "f33") == set()


@given(st.lists(st.builds(Span, st.integers(0, 50), st.integers(1, 20)), max_size=8))
def test_memory_is_registered_once(spans: list[Span]) -> None:
    found = union(spans)
    covered = [byte for span in found for byte in range(span.address, span.address + span.size)]
    assert len(covered) == len(set(covered))
    assert set(covered) == {byte for span in spans for byte in range(span.address, span.address + span.size)}
    assert all(one.address + one.size < other.address for one, other in pairwise(found))
