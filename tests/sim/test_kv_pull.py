"""KV pulls in virtual time, a history for each seed: peers killed, links cut, bytes damaged, blocks freed early,
aborts, late writes, sleep midway. A failure names its seed; `SEEDS` and `FIRST_SEED` in the environment run others."""

from __future__ import annotations

import os

import pytest

from tests.helpers.kv_world import Violated, World

FIRST_SEED = int(os.environ.get("FIRST_SEED", "0"))
SEEDS = int(os.environ.get("SEEDS", "50"))


@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(FIRST_SEED, FIRST_SEED + SEEDS))
def test_with_faults(seed: int) -> None:
    """Each request ends in the right bytes or in blocks to be computed again; both pools end at baseline."""
    world = World(seed)
    world.live(12.0)
    world.check_baseline()
    assert world.requests[world.last].ended == "whole"


@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(FIRST_SEED, FIRST_SEED + max(1, SEEDS // 2)))
def test_without_faults_everything_is_pulled(seed: int) -> None:
    world = World(seed, faults=False)
    world.live(6.0)
    world.check_baseline()
    assert {made.ended for made in world.requests.values()} == {"whole"}
    assert {outcome for made in world.requests.values() for outcome in made.outcomes} == {"delivered"}


def test_the_seeds_meet_what_they_should() -> None:
    """Histories in which nothing goes wrong prove nothing."""
    told = "\n".join(line for seed in range(25) for line in _story(seed))
    troubles = ("silent", "freed", "aborted", "damaged", "reset", "anew", "given back", "peer is gone", "sleeps")
    for trouble in (*troubles, "waits for memory"):
        assert trouble in told, trouble
    assert told.count("whole") > 100


def test_the_world_notices_bytes_that_are_not_those_of_prefill() -> None:
    """The negative control: heads in the wrong place."""
    world = World(3, faults=False)
    world.request()
    for made in world.requests.values():
        made.content[:] = made.content[..., ::-1] ^ 1
    with pytest.raises(Violated, match="other bytes"):
        world.run(5.0)


def _story(seed: int) -> list[str]:
    world = World(seed)
    world.live(12.0)
    return world.story
