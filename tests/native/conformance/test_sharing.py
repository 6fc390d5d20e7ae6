"""Chunks across processes, on every driver: given, mapped on both sides, refused, and killed."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from native._native import Driver
from tests.helpers.drivers import DriverCase
from tests.helpers.peer import Peer, let_go
from tests.helpers.window import Window

MAPS = """
    handle = None
    while True:
        word = hear()
        if word == "import":
            shareable = take()
            handle = driver.import_handle(shareable, CHUNK)
            let_go(shareable)
            tell(facts())
        elif word == "map":
            base = driver.reserve(CHUNK)
            driver.map(base, handle)
            tell(window.read(base, 16).decode())
            window.write(base + CHUNK - 16, b"from the importer"[:16])
            tell("written")
        elif word == "unmap":
            driver.unmap(base)
            driver.destroy(handle)
            driver.release(base)
            tell(facts())
"""


@dataclass
class Shared:
    base: int
    handle: int
    shareable: int


@pytest.fixture
def shared(driver: Driver, chunk: int) -> Iterator[Shared]:
    """A chunk of ours, mapped here and exported."""
    handle = driver.create(chunk)
    base = driver.reserve(chunk)
    driver.map(base, handle)
    shareable = driver.export_handle(handle)
    yield Shared(base, handle, shareable)
    let_go(driver, shareable)
    driver.unmap(base)
    driver.destroy(handle)
    driver.release(base)


def lend(driver: Driver, shared: Shared, peer: Peer) -> None:
    driver.permit(shared.handle, [peer.share_id])
    peer.say("import")
    peer.give(driver, shared.shareable)


def test_another_process_maps_the_same_pages(
    case: DriverCase, driver: Driver, chunk: int, shared: Shared, window: Window
) -> None:
    window.write(shared.base, b"from the owner!!")
    with Peer(case, MAPS) as peer:
        for _ in range(2):  # given back and given again, by the same shareable
            lend(driver, shared, peer)
            assert peer.answer() == [0, chunk, 0, 1, 0]
            assert peer.ask("map") == "from the owner!!"
            assert peer.answer() == "written"
            assert window.read(shared.base + chunk - 16, 16) == b"from the importe"
            window.write(shared.base + chunk - 16, bytes(16))
            assert peer.ask("unmap") == [0, 0, 0, 0, 0]


def test_a_wiped_chunk_shows_the_next_importer_nothing_of_the_last(
    case: DriverCase, driver: Driver, chunk: int, shared: Shared, window: Window
) -> None:
    driver.unmap(shared.base)  # as the daemon has it: mapped nowhere at home
    for dies in (False, True):
        with Peer(case, MAPS) as peer:
            lend(driver, shared, peer)
            peer.answer()
            assert peer.ask("map") == "\0" * 16
            assert peer.answer() == "written"
            if dies:
                peer.kill()
            else:
                peer.ask("unmap")
        driver.wipe([shared.handle])
    driver.map(shared.base, shared.handle)
    assert window.read(shared.base, chunk) == bytes(chunk)


def test_a_killed_importer_takes_nothing_with_it(
    case: DriverCase, driver: Driver, shared: Shared, window: Window, facts
) -> None:
    window.write(shared.base, b"before the kill!")
    before = facts()
    for _ in range(2):  # and the chunk can be given to the next
        with Peer(case, MAPS) as peer:
            lend(driver, shared, peer)
            peer.answer()
            assert peer.ask("map") == "before the kill!"
            peer.process.send_signal(signal.SIGKILL)
            assert peer.process.wait(60) == -signal.SIGKILL
        assert window.read(shared.base, 16) == b"before the kill!"
        assert facts() == before


def test_a_killed_owner_leaves_the_pages_to_the_importer(case: DriverCase, driver: Driver, chunk: int) -> None:
    """Here the other process owns: it prints what it exported, and is killed."""
    code = """
    handle = driver.create(CHUNK)
    base = driver.reserve(CHUNK)
    driver.map(base, handle)
    window.write(base, b"outlives its owner")
    shareable = driver.export_handle(handle)
    driver.permit(handle, [int(hear())])
    if driver.sharing == "descriptor":
        socket.send_fds(line, [json.dumps("here").encode() + b"\\n"], [shareable])
    else:
        tell(shareable)
    hear()
    """
    with Peer(case, code) as owner:
        owner.say(str(driver.share_id()))
        shareable = owner.take_descriptor() if driver.sharing == "descriptor" else owner.answer()
        handle = driver.import_handle(shareable, chunk)
        let_go(driver, shareable)
        base = driver.reserve(chunk)
        driver.map(base, handle)
        window = Window(driver)
        owner.kill()
        assert window.read(base, 18) == b"outlives its owner"
        free = driver.free_bytes()
        window.close()
        driver.unmap(base)
        driver.destroy(handle)
        driver.release(base)
        if case.simulated:
            assert driver.free_bytes() == free + chunk


def test_pages_are_free_when_the_last_process_lets_go(case: DriverCase, chunk: int) -> None:
    """A destroyed chunk that an importer still holds is not given twice: the kernel or the device counts, not we.

    With one exception: nobody counts the pages of memfds.
    """
    owner = case.open(limit=2 * chunk) if case.name == "host" else case.open()
    handle = owner.create(chunk)
    room = owner.free_bytes()
    shareable = owner.export_handle(handle)
    with Peer(case, MAPS) as peer:
        lend(owner, Shared(0, handle, shareable), peer)
        peer.answer()
        peer.ask("map")
        let_go(owner, shareable)
        owner.destroy(handle)
        assert owner.stats().own_bytes == 0
        assert owner.free_bytes() == (room + chunk if case.backing == "memfd" else room)
        peer.kill()
    assert owner.free_bytes() == room + chunk
    owner.destroy(owner.create(2 * chunk))


# Rules


def test_a_handle_is_exported_once(driver: Driver, refused, handles) -> None:
    let_go(driver, driver.export_handle(handles[0]))
    assert refused("export_handle", handles[0]).name == "EALREADY"


def test_an_imported_chunk_is_not_passed_on_nor_imported_twice(
    case: DriverCase, driver: Driver, shared: Shared
) -> None:
    code = """
    hear()
    shareable = take()
    handle = driver.import_handle(shareable, CHUNK)
    tell(refused("export_handle", handle))
    tell(refused("wipe", [handle]))
    if case.knows_chunks:
        tell(refused("import_handle", shareable, CHUNK))
    """
    with Peer(case, code) as peer:
        lend(driver, shared, peer)
        assert peer.answer() == "EPERM"
        assert peer.answer() == "EPERM"
        if case.knows_chunks:
            assert peer.answer() == "EALREADY"


def test_a_chunk_is_not_imported_where_it_was_created(case: DriverCase, chunk: int, shared: Shared, refused) -> None:
    if case.knows_chunks:
        assert refused("import_handle", shared.shareable, chunk).name == "EALREADY"


def test_a_reservation_holds_only_own_or_only_imported_chunks(case: DriverCase, driver: Driver, shared: Shared) -> None:
    code = """
    hear()
    imported = driver.import_handle(take(), CHUNK)
    own = driver.create(CHUNK)
    base = driver.reserve(2 * CHUNK)
    driver.map(base, own)
    tell(refused("map", base + CHUNK, imported))
    driver.unmap(base)
    driver.map(base, imported)  # empty again: the other kind may come
    tell(refused("map", base + CHUNK, own))
    """
    with Peer(case, code) as peer:
        lend(driver, shared, peer)
        assert [peer.answer(), peer.answer()] == ["EPERM", "EPERM"]


def test_an_importer_says_the_true_size(case: DriverCase, driver: Driver, shared: Shared) -> None:
    """A descriptor or number does not tell the size everywhere; then mapping is refused instead."""
    code = """
    hear()
    base = driver.reserve(2 * CHUNK)
    shareable = take()
    before = facts()
    try:
        handle = driver.import_handle(shareable, 2 * CHUNK)
        tell(refused("map", base, handle))
        driver.destroy(handle)
    except DriverError as error:
        tell(error.name)
    tell(facts() == before)
    """
    with Peer(case, code) as peer:
        lend(driver, shared, peer)
        assert peer.answer() not in ("not refused", "something changed")
        assert peer.answer() is True


def test_nonsense_is_not_imported(chunk: int, refused) -> None:
    refused("import_handle", 1 << 40, chunk)
    refused("import_handle", (1 << 64) - 1, chunk)
    assert refused("import_handle", 3, chunk + 1).name == "EINVAL"


def test_who_is_not_permitted_does_not_import(case: DriverCase, driver: Driver, shared: Shared) -> None:
    """Where chunks are shared by number: elsewhere who has the descriptor may."""
    if driver.sharing == "descriptor":
        driver.permit(shared.handle, [1])  # changes nothing
        return
    code = """
    number = take()
    tell(refused("import_handle", number, CHUNK))
    hear()
    tell(driver.import_handle(number, CHUNK) != 0)
    """
    with Peer(case, code) as peer:
        peer.give(driver, shared.shareable)
        assert peer.answer() not in ("not refused", "something changed")
        driver.permit(shared.handle, [peer.share_id])
        peer.say("again")
        assert peer.answer() is True


def test_only_an_exported_chunk_is_permitted(refused, handles, driver: Driver) -> None:
    refused("permit", handles[0], [driver.share_id()])
