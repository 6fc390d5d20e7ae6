"""Tickets from one engine's scheduler to another's, and blocks between their ranks: stations over real TCP, no vLLM."""

from __future__ import annotations

import asyncio
import socket

import pytest

from engine_patch.kv_bookings import Asked
from tests.helpers.eventually import eventually
from tests.helpers.kv_stations import Engine, engine, noise
from transfer.kv.station import Missing, Station

PROMPT = list(range(30))
"""Four blocks, the last not full."""
SRC, DST = [3, 1, 2, 9], [7, 4, 5, 11]


def all_of(blocks: list[int], group: int = 0) -> set[Missing]:
    return {Missing(group, block) for block in blocks}


@pytest.mark.parametrize(("prefill_tp", "decode_tp"), [(1, 1), (2, 1), (1, 2), (4, 2), (1, 8)])
async def test_blocks_and_both_verdicts(prefill_tp: int, decode_tp: int) -> None:
    with engine(prefill_tp) as prefill, engine(decode_tp) as decode:
        content = noise(1, 4)
        ticket = prefill.prefill(PROMPT, [SRC], content)
        assert decode.decode("d", PROMPT, ticket, [DST], 0) == 30
        for result in await decode.results():
            assert (result.received, result.failed, result.blocks) == ({"d"}, set(), set())
        assert decode.holds([DST], content)
        assert all(result.sent for result in await prefill.results())


async def test_what_is_cached_here_is_not_pulled() -> None:
    """Blocks of the local prefix cache belong to others as well: nothing is written into them."""
    with engine(2) as prefill, engine(1) as decode:
        content = noise(1, 4)
        ticket = prefill.prefill(PROMPT, [SRC], content)
        decode.ranks[0].memory[0][0][DST[:2]] = 77
        assert decode.decode("d", PROMPT, ticket, [DST], 16) == 14
        await decode.results()
        assert decode.holds([DST], content, first=2)
        assert (decode.ranks[0].memory[0][0][DST[:2]] == 77).all()
        assert all(result.sent for result in await prefill.results())


async def test_a_block_that_was_freed_early_is_named_by_its_own_id() -> None:
    """Places are counted through the whole ticket on one side, and from the first wanted block on the other."""
    with engine(1) as prefill, engine(2) as decode:
        ticket = prefill.prefill(PROMPT, [SRC], noise(1, 4))
        prefill.ranks[0].station._desk.freed([SRC[0], SRC[3]])
        decode.decode("d", PROMPT, ticket, [DST], 8)
        for result in await decode.results():
            assert (result.received, result.failed, result.blocks) == ({"d"}, {"d"}, {Missing(0, DST[3])})


async def test_the_scheduler_gives_offered_blocks_to_others() -> None:
    """Which it never should: whoever reads them hears of it, from every rank."""
    with engine(2) as prefill, engine(1) as decode:
        ticket = prefill.prefill(PROMPT, [SRC], noise(1, 4))
        prefill.bookings.given([SRC[1], 5])
        prefill.step()
        decode.decode("d", PROMPT, ticket, [DST], 0)
        (result,) = await decode.results()
        assert (result.received, result.blocks) == ({"d"}, {Missing(0, DST[1])})


async def test_several_groups() -> None:
    """Each group has blocks of its own; outside of a window there are none on either side."""
    with engine(2, groups=2) as prefill, engine(1, groups=2) as decode:
        content = noise(2, 4)
        blocks = [SRC, [0, 0, 5, 6]]
        ticket = prefill.prefill(PROMPT, blocks, content)
        decode.decode("d", PROMPT, ticket, [DST, [0, 0, 8, 9]], 0)
        (result,) = await decode.results()
        assert (result.received, result.failed) == ({"d"}, set())
        assert decode.holds([DST], content)
        window = decode.ranks[0].memory[1]
        assert all((window[layer][[8, 9]] == content[1, layer][2:]).all() for layer in range(3))
        assert all(result.sent for result in await prefill.results())


@pytest.mark.parametrize("early", [0, 1, 2])
async def test_what_did_not_come_is_named_in_every_group(early: int) -> None:
    """By group and block: one group's loss is not another's, though their ids are equal."""
    with engine(2, groups=3) as prefill, engine(1, groups=3) as decode:
        src = [SRC, [4, 5, 6, 7], [8, 10, 11, 12]]
        content = noise(3, 4)
        ticket = prefill.prefill(PROMPT, src, content)
        prefill.ranks[1].station._desk.freed(src[early][1:3])
        decode.decode("d", PROMPT, ticket, [DST] * 3, 0)
        (result,) = await decode.results()
        assert (result.received, result.failed) == ({"d"}, {"d"})
        assert result.blocks == all_of(DST[1:3], early)


async def test_a_block_that_the_ticket_does_not_have_fails_the_pull() -> None:
    with engine(1, groups=2) as prefill, engine(1, groups=2) as decode:
        ticket = prefill.prefill(PROMPT, [SRC, [0, 4, 5, 6]], noise(2, 4))
        decode.decode("d", PROMPT, ticket, [DST, [3, 4, 8, 9]], 0)
        (result,) = await decode.results()
        assert (result.received, result.failed) == ({"d"}, {"d"})


@pytest.mark.parametrize("why", ["all is cached", "another prompt", "aborted while it waited"])
async def test_what_is_not_wanted_is_let_go_of_at_once(why: str) -> None:
    """The prefill engine need not wait for a lease to end."""
    with engine(2) as prefill, engine(1) as decode:
        ticket = prefill.prefill(PROMPT, [SRC], noise(1, 4))
        if why == "all is cached":
            assert decode.decode("d", PROMPT, ticket, [DST], 30) == 0
        elif why == "another prompt":
            assert decode.decode("d", PROMPT[1:], ticket, [DST], 0) == 0
        else:
            decode.bookings.finished(Asked("d", PROMPT, (), {"vnpu": ticket}), whole=False, blocks=[[]])
            decode.step()
        assert all(result.sent for result in await prefill.results())
        assert decode.ranks[0].station.collect().received == set()


async def test_an_aborted_pull_still_ends() -> None:
    with engine(1) as prefill, engine(1) as decode:
        ticket = prefill.prefill(PROMPT, [SRC], noise(1, 4))
        decode.decode("d", PROMPT, ticket, [DST], 0)
        decode.bookings.finished(Asked("d", PROMPT, (), {"vnpu": ticket}), whole=False, blocks=[DST])
        decode.step()
        (result,) = await decode.results()
        assert result.received == {"d"}
        assert (await prefill.results())[0].sent


async def test_a_prefill_engine_that_is_gone() -> None:
    with engine(1) as decode:
        with engine(2) as prefill:
            ticket = prefill.prefill(PROMPT, [SRC], noise(1, 4))
        decode.decode("d", PROMPT, ticket, [DST], 0)
        (result,) = await decode.results()
        assert (result.received, result.blocks) == ({"d"}, all_of(DST))


async def test_a_ticket_in_use_twice() -> None:
    """The second request computes; the first is none the worse."""
    with engine(1) as prefill, engine(1) as decode:
        content = noise(1, 4)
        ticket = prefill.prefill(PROMPT, [SRC], content)
        decode.decode("d", PROMPT, ticket, [DST], 0)
        decode.decode("e", PROMPT, ticket, [[12, 13, 14, 15]], 0)
        seen = await decode.results()
        while not {"d", "e"} <= seen[0].received:
            more = (await decode.results())[0]
            seen[0].received |= more.received
            seen[0].blocks |= more.blocks
        assert seen[0].blocks in (all_of([12, 13, 14, 15]), all_of(DST))


async def test_who_has_nothing_else_to_do_hears_at_once() -> None:
    with engine(1) as prefill, engine(1) as decode:
        ticket = prefill.prefill(PROMPT, [SRC], noise(1, 4))
        decode.decode("d", PROMPT, ticket, [DST], 0)
        station = decode.ranks[0].station
        assert (await asyncio.to_thread(station.collect, 60.0)).received == {"d"}
        assert station.collect(0.001).received == set()


async def test_connections_that_the_source_gave_up_meanwhile_cost_nothing() -> None:
    """A prefill engine takes readers that are silent for long to be gone. They only had nothing to pull."""
    with engine(2) as prefill, engine(1) as decode:
        for name in ("first", "second"):
            content = noise(1, 4) ^ len(name)
            ticket = prefill.prefill(PROMPT, [SRC], content)
            decode.decode(name, PROMPT, ticket, [DST], 0)
            assert (await decode.results())[0].blocks == set()
            assert decode.holds([DST], content)
            for result in await prefill.results():
                prefill.bookings.sent(result.sent)
            for rank in prefill.ranks:
                await hang_up(rank.station)


async def hang_up(station: Station) -> None:
    """On everybody, as after `IDLE_S`."""
    listener = station._listener
    assert listener.clients
    for sock in list(listener._clients.values()):
        sock.shutdown(socket.SHUT_RDWR)
    await eventually(lambda: not listener.clients)


# ---- sleep


async def quiet(each: Engine) -> None:
    for rank in each.ranks:
        assert await asyncio.to_thread(rank.station.sleep, 5.0)


async def test_sleep_takes_back_what_nobody_reads_and_reads_are_refused() -> None:
    with engine(1) as prefill, engine(1) as decode:
        ticket = prefill.prefill(PROMPT, [SRC], noise(1, 4))
        await quiet(prefill)
        assert (await prefill.results())[0].sent
        prefill.ranks[0].memory[0][0][:] = 0
        decode.decode("d", PROMPT, ticket, [DST], 0)
        assert (await decode.results())[0].blocks == all_of(DST)


async def test_after_waking_up_all_is_as_before() -> None:
    with engine(2) as prefill, engine(1) as decode:
        content = noise(1, 4)
        for each in (prefill, decode):
            await quiet(each)
            for rank in each.ranks:
                rank.station.wake()
        ticket = prefill.prefill(PROMPT, [SRC], content)
        decode.decode("d", PROMPT, ticket, [DST], 0)
        assert (await decode.results())[0].blocks == set()
        assert decode.holds([DST], content)


async def test_what_is_offered_before_all_memory_is_back_is_pulled_then() -> None:
    with engine(2) as prefill, engine(1) as decode:
        content = noise(1, 4)
        await quiet(prefill)
        ticket = prefill.prefill(PROMPT, [SRC], content)
        decode.decode("d", PROMPT, ticket, [DST], 0)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await decode.results()
        for rank in prefill.ranks:
            rank.station.wake()
        assert (await decode.results())[0].blocks == set()
        assert decode.holds([DST], content)


async def test_waking_what_is_awake_changes_nothing() -> None:
    """Each step of an engine says so: connections that are known stay good."""
    with engine(1) as each:
        station = each.ranks[0].station
        await quiet(each)
        station.wake()
        before = station.guard.generation
        station.wake()
        assert station.guard.generation == before


async def test_a_pull_that_is_ordered_during_sleep_waits_for_the_cache() -> None:
    with engine(1) as prefill, engine(1) as decode:
        content = noise(1, 4)
        ticket = prefill.prefill(PROMPT, [SRC], content)
        await quiet(decode)
        decode.decode("d", PROMPT, ticket, [DST], 0)
        station = decode.ranks[0].station
        for _ in range(3):  # what was ordered has been begun by now
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(asyncio.sleep(0), station._loop))
        assert station._pulls
        assert not station._known
        assert station.collect().received == set()
        assert not decode.ranks[0].memory[0][0].any()
        decode.ranks[0].station.wake()
        assert (await decode.results())[0].blocks == set()
        assert decode.holds([DST], content)


async def test_an_engine_that_ends_ends_its_pulls() -> None:
    with engine(1) as prefill, engine(1) as decode:
        ticket = prefill.prefill(PROMPT, [SRC], noise(1, 4))
        await quiet(decode)
        decode.decode("d", PROMPT, ticket, [DST], 0)
        decode.ranks[0].station.close()
        assert decode.ranks[0].station.collect().received == {"d"}
