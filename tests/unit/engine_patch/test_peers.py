"""Running engines as the source of a restore, with memory in the place of a model and a dictionary in that of etcd."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from engine_patch.loader_options import Options
from engine_patch.peers import Peers
from engine_patch.streaming import Streaming
from tests.helpers.board import Board, table
from tests.helpers.eventually import eventually
from tests.helpers.light_peers import BESIDE, LightRank
from tests.helpers.weights import LOCAL, Rank
from tests.helpers.wires import TRUST
from transfer.errors import TransferError

SIZE = (3 << 20) + 5
PATIENCE_S = 30.0


class Town:
    """Engines by name."""

    def __init__(self) -> None:
        self.board = Board()
        self._streaming: list[Streaming] = []
        self._ranks: list[Rank] = []
        """Their memory is read by address."""

    async def engine(self, name: str, rank: Rank) -> Peers:
        streaming = Streaming(name, 0, Options(), self.board.of(name), TRUST, LOCAL)
        self._streaming.append(streaming)
        self._ranks.append(rank)
        streaming.serve(rank.identity, table(rank))
        await eventually(lambda: (seed := self.board.seed(name)) is not None and seed.whole)
        return Peers(streaming, rank.identity, table(rank))

    def served(self, name: str) -> bool:
        seed = self.board.seed(name)
        return seed is not None and seed.port > 0

    def close(self) -> None:
        for streaming in self._streaming:
            streaming.close()


def leave(peers: Peers) -> bool:
    """Whether it may drop its weights."""
    peers.withdraw()
    return peers.known()


@pytest.fixture
async def town() -> AsyncIterator[Town]:
    one = Town()
    yield one
    one.close()


@pytest.mark.parametrize("beside", [BESIDE, BESIDE[:-1] + b"?"])
async def test_pages_are_filled_and_what_lies_outside_them_has_to_be_the_same(town: Town, beside: bytes) -> None:
    here = LightRank("w", "w", SIZE)
    peers = await town.engine("b", here)
    await town.engine("a", LightRank("w", "w", SIZE, beside))
    here.held[0][:] = bytes(SIZE)
    if beside == BESIDE:
        assert peers.fetch(PATIENCE_S) == SIZE + len(BESIDE)
        assert here.content == LightRank("w", "w", SIZE).content
    else:
        with pytest.raises(TransferError, match="not what was loaded here"):
            peers.fetch(PATIENCE_S)
        assert here.held[1] == BESIDE


async def test_two_that_leave_at_once_do_not_count_on_each_other(town: Town) -> None:
    rank = LightRank("w", "w", SIZE)
    first, second = await town.engine("a", rank), await town.engine("b", rank)
    assert await asyncio.to_thread(leave, first)
    assert not await asyncio.to_thread(leave, second)
    second.serve()
    await eventually(lambda: town.served("b"))
    assert await asyncio.to_thread(leave, first)
    first.serve()
    await eventually(lambda: town.served("a"))


async def test_of_two_that_leave_in_the_same_instant_one_keeps_its_weights(town: Town) -> None:
    rank = LightRank("w", "w", SIZE)
    both = [await town.engine(name, rank) for name in ("a", "b")]
    dropped = await asyncio.gather(*(asyncio.to_thread(leave, one) for one in both))
    assert not all(dropped)
