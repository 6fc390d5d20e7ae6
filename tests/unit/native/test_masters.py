"""Host masters and their budget, with the real host driver."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from native.daemon.masters import Masters, NoMaster, NoRoom, NotThat, Short
from native.journal import HostLedger

MIB = 1 << 20


@pytest.fixture
async def masters() -> AsyncIterator[Masters]:
    made = Masters(8 * MIB, lambda: frozenset({"wanted"}), resident=lambda process: process > 10)
    yield made
    made.close()


async def sealed(masters: Masters, digest: str, process: int, size: int = 2 * MIB) -> None:
    master = await masters.create(size, process)
    os.pwrite(master.descriptor, digest.encode(), 0)
    await masters.seal(master, digest)


async def test_room_is_taken_before_the_pages_are_there(masters: Masters) -> None:
    """Two that ask at once are not both told that there is room."""
    made = await asyncio.gather(masters.create(6 * MIB, 1), masters.create(6 * MIB, 2), return_exceptions=True)
    assert [type(one).__name__ for one in made] == ["Master", "NoRoom"]
    assert masters.bytes == 6 * MIB


async def test_a_creation_that_is_given_up_gives_its_room_back(masters: Masters) -> None:
    creating = asyncio.create_task(masters.create(6 * MIB, 1))
    await asyncio.sleep(0)
    assert masters.bytes == 6 * MIB
    creating.cancel()
    await asyncio.wait((creating,))
    async with asyncio.timeout(60):
        while masters.bytes:  # noqa: ASYNC110 (the thread that makes it ends unheard)
            await asyncio.sleep(0.01)
    await masters.create(8 * MIB, 1)


async def test_what_a_process_has_mapped_is_never_evicted(masters: Masters) -> None:
    for number, digest in enumerate("abcd", 1):
        await sealed(masters, digest, number)
    with pytest.raises(NoRoom) as refused:
        await masters.create(2 * MIB, 5)
    assert not isinstance(refused.value, Short)
    masters.release("b", 2)
    await masters.create(2 * MIB, 5)
    assert sorted(masters.digests) == ["a", "c", "d"]
    assert masters.evicted == 1


async def test_those_that_no_engine_names_go_before_the_others(masters: Masters) -> None:
    for digest in ("wanted", "old", "new"):
        await sealed(masters, digest, 1)
        masters.release(digest, 1)
    await masters.create(4 * MIB, 1)
    assert sorted(masters.digests) == ["new", "wanted"]
    await masters.create(2 * MIB, 1)
    assert sorted(masters.digests) == ["wanted"]


async def test_who_has_its_pages_is_named_as_one_that_could_spare_it(masters: Masters) -> None:
    await sealed(masters, "asleep", 1, 2 * MIB)
    await sealed(masters, "resident", 11, 2 * MIB)
    await sealed(masters, "both", 12, 2 * MIB)
    masters.open("both", 1)
    masters.report(1, 2 * MIB)
    with pytest.raises(Short) as short:
        await masters.create(2 * MIB, 2)
    assert short.value.spare == {"resident": frozenset({11})}
    with pytest.raises(NoRoom) as refused:
        await masters.create(4 * MIB, 2)
    assert not isinstance(refused.value, Short), "nobody is asked in vain"
    with pytest.raises(Short):
        masters.report(1, 4 * MIB)
    assert masters.saved_kv == 2 * MIB


async def test_nothing_is_evicted_for_what_does_not_fit_anyhow(masters: Masters) -> None:
    await sealed(masters, "unused", 1)
    masters.release("unused", 1)
    await sealed(masters, "pinned", 1, 4 * MIB)
    with pytest.raises(NoRoom):
        await masters.create(6 * MIB, 2)
    assert "unused" in masters.digests


async def test_over_a_restart_what_the_living_hold_is_charged(masters: Masters) -> None:
    await sealed(masters, "shared", 1)
    kept, _ = masters.open("shared", 2)
    await sealed(masters, "of the dead", 3)
    await sealed(masters, "unused", 1)
    masters.release("unused", 1)
    masters.report(1, MIB)
    masters.report(3, MIB)
    ledger = masters.ledger()
    after = Masters(8 * MIB, frozenset)
    after.recall(ledger, {1, 2})
    assert (after.bytes, after.saved_kv) == (2 * MIB, MIB)
    assert after.ledger() == HostLedger(tuple(m for m in ledger.masters if m.digest == "shared"), {1: MIB})
    with pytest.raises(NoMaster):
        after.open("shared", 1)
    assert not await after.hand_back("shared", kept, 3)
    assert await after.hand_back("shared", kept, 2)
    assert (after.bytes, after.pinned, after.missed("shared")) == (2 * MIB, 2 * MIB, False)
    descriptor, size = after.open("shared", 5)
    assert (os.pread(descriptor, 6, 0), size) == (b"shared", 2 * MIB)
    assert not await after.hand_back("shared", kept, 1)
    for process in (1, 2, 5):
        after.forget(process)
    assert after.ledger() == HostLedger()
    after.close()
    os.close(descriptor)
    os.close(kept)


async def test_what_is_handed_back_must_be_what_was_sealed(masters: Masters, tmp_path: Path) -> None:
    await sealed(masters, "digest", 1)
    kept, _ = masters.open("digest", 1)
    after = Masters(8 * MIB, frozenset)
    after.recall(masters.ledger(), {1})
    forged = os.open(tmp_path / "forged", os.O_RDWR | os.O_CREAT)
    os.truncate(forged, 2 * MIB)
    with pytest.raises(NotThat, match="is not that of"):
        await after.hand_back("digest", forged, 1)
    os.fchmod(kept, 0o600)
    writable = os.open(f"/proc/self/fd/{kept}", os.O_RDWR)
    os.pwrite(writable, b"changed", 0)
    with pytest.raises(NotThat, match="does not hold what was sealed"):
        await after.hand_back("digest", kept, 1)
    os.pwrite(writable, b"digest\0", 0)
    assert await after.hand_back("digest", kept, 1)
    after.close()
    for descriptor in (kept, writable, forged):
        os.close(descriptor)


async def test_content_that_was_read_anew_is_not_replaced_by_what_is_handed_back(masters: Masters) -> None:
    """The old copy stays charged until its users let go."""
    await sealed(masters, "digest", 1)
    kept, _ = masters.open("digest", 1)
    after = Masters(8 * MIB, frozenset)
    after.recall(masters.ledger(), {1})
    await sealed(after, "digest", 2)
    assert await after.hand_back("digest", kept, 1)
    assert after.bytes == 4 * MIB
    after.release("digest", 1)
    assert after.bytes == 2 * MIB
    after.close()
    os.close(kept)
