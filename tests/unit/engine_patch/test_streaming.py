"""One rank's part in Netloader, with memory in the place of a model and a dictionary in the place of etcd."""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import msgspec
import pytest

from coordinator.core.model import Seed
from engine_patch import streaming as streaming_module
from engine_patch.loader_options import Options, RankSources, write_address
from engine_patch.streaming import Streaming
from engine_patch.together import Near, Together
from tests.helpers.board import Board, table
from tests.helpers.eventually import eventually
from tests.helpers.weights import BLOCK, LOCAL, Rank, identity
from tests.helpers.wires import TRUST
from transfer.errors import PeerLost, TransferError
from transfer.netloader import client
from transfer.netloader.guard import Guard, Switching
from transfer.netloader.manifest import Extent, layout_digest
from transfer.netloader.ways import Loan
from transfer.netloader.wire import Lent
from transfer.netloader.work import Work
from transfer.transports.deadline import Deadline
from transfer.transports.window import Window

LENGTHS = (9 * BLOCK + 1, 64)
LIMIT_S = 60.0


class Town(ExitStack):
    def __init__(self) -> None:
        super().__init__()
        self.board = Board()

    def engine(self, name: str, options: Options = Options(), **more: Any) -> Streaming:  # noqa: B008
        streaming = Streaming(name, 0, options, self.board.of(name), TRUST, LOCAL, **more)
        self.callback(streaming.close)
        return streaming

    async def whole(self, name: str, rank: Rank, **more: Any) -> Streaming:
        streaming = self.engine(name, **more)
        streaming.serve(rank.identity, table(rank))
        await eventually(lambda: (seed := self.board.seed(name)) is not None and seed.whole)
        return streaming


@pytest.fixture
def town(monkeypatch: pytest.MonkeyPatch) -> Iterator[Town]:
    monkeypatch.setattr(client, "EMPTY_S", 0.3)
    for name in ("REFRESH_S", "REST_S"):  # far below it: else a source that rests counts as gone
        monkeypatch.setattr(client, name, 0.01)
    with Town() as town:
        yield town


async def test_what_was_loaded_is_served_and_found(town: Town):
    source, starter = Rank(LENGTHS, seed=1), Rank(LENGTHS)
    await town.whole("a", source)
    fetching = town.engine("b")
    assert fetching.known(source.identity.family)
    assert not fetching.known("another")
    streamed = fetching.fetch(starter.identity, table(starter), LIMIT_S)
    assert starter.content == source.content
    assert len(streamed.blocks) == 1
    await eventually(lambda: (seed := town.board.seed("b")) is not None and seed.whole)


async def test_who_was_fetched_to_is_a_source_in_turn(town: Town):
    source, second, third = Rank(LENGTHS, seed=1), Rank(LENGTHS), Rank(LENGTHS)
    first = await town.whole("a", source)
    middle = town.engine("b")
    middle.fetch(second.identity, table(second), LIMIT_S)
    middle.serve(second.identity, table(second))
    await eventually(lambda: (seed := town.board.seed("b")) is not None and seed.whole)
    first.close()
    del town.board.seeds["a", source.identity.fingerprint]
    town.engine("c").fetch(third.identity, table(third), LIMIT_S)
    assert third.content == source.content


async def test_a_starter_is_in_the_directory_before_it_has_anything(town: Town):
    source = Rank(LENGTHS, seed=1)
    await town.whole("a", source)
    starter = Rank(LENGTHS)
    town.engine("b").fetch(starter.identity, table(starter), LIMIT_S)
    seeds = [seed for engine, seed in town.board.history if engine == "b"]
    assert all(seed.total == sum(LENGTHS) for seed in seeds)
    assert all(seed.since > 0 for seed in seeds)


async def test_a_failure_leaves_nothing_to_serve(town: Town):
    starter = Rank(LENGTHS)
    streaming = town.engine("b")
    with pytest.raises(TransferError, match="no source is left"):
        streaming.fetch(starter.identity, table(starter), LIMIT_S)
    await eventually(lambda: (seed := town.board.seed("b")) is not None and seed.port == 0)
    # From disk then; and now it serves.
    loaded = Rank(LENGTHS, seed=1)
    streaming.serve(loaded.identity, table(loaded))
    await eventually(lambda: (seed := town.board.seed("b")) is not None and seed.whole and seed.port > 0)
    third = Rank(LENGTHS)
    town.engine("c").fetch(third.identity, table(third), LIMIT_S)
    assert third.content == loaded.content


async def test_who_withdraws_as_its_sums_are_ready_stays_withdrawn(town: Town, monkeypatch: pytest.MonkeyPatch):
    """Or others would count on weights that are dropped."""
    withdrawing: list[threading.Thread] = []
    replace = msgspec.structs.replace

    def slowly(seed: Seed, **changes: Any) -> Seed:
        if changes.get("have") and not withdrawing:
            withdrawing.append(threading.Thread(target=lambda: source.offer(served=False)))
            withdrawing[0].start()
            withdrawing[0].join(0.1)
        return replace(seed, **changes)

    monkeypatch.setattr(streaming_module.msgspec.structs, "replace", slowly)
    source, rank = town.engine("a"), Rank(LENGTHS, seed=1)
    source.serve(rank.identity, table(rank))
    await eventually(lambda: (seed := town.board.seed("a")) is not None and seed.have > 0 and seed.port == 0)


async def test_weights_that_are_away_for_long_are_summed_when_they_are_back(town: Town):
    """An engine that leaves right after its start, and whose weights nobody keeps."""
    tries: list[float] = []

    class Away(Guard):
        def waiting(self, timeout_s: float = 60.0) -> AbstractContextManager[int]:
            tries.append(timeout_s)
            if len(tries) < 3:
                raise Switching("the engine is being switched")
            return super().waiting(timeout_s)

    await town.whole("a", Rank(LENGTHS, seed=1), guard=Away())
    assert len(tries) > 3


async def test_while_the_engine_sleeps_its_master_is_read(town: Town):
    pages, master, starter = Rank(LENGTHS, seed=1), Rank(LENGTHS, seed=1), Rank(LENGTHS)
    guard, asleep, arena = Guard(), threading.Event(), pages.addresses[0]

    def locate(address: int) -> int:
        inside = asleep.is_set() and arena <= address < arena + LENGTHS[0]
        return master.addresses[0] + address - arena if inside else address

    await town.whole("a", pages, guard=guard, locate=locate)
    assert guard.close()
    pages.held[0][:] = b"\xa5" * LENGTHS[0]
    asleep.set()
    guard.open()
    town.engine("b").fetch(starter.identity, table(starter), LIMIT_S)
    assert starter.content == master.content


async def test_sources_that_were_named_are_asked_and_nobody_else(town: Town):
    source, other, starter = Rank(LENGTHS, seed=1), Rank(LENGTHS, seed=2), Rank(LENGTHS)
    named = await town.whole("a", source)
    await town.whole("z", other)
    options = Options(source=(RankSources(0, (f"{LOCAL}:{named._port}",)),))
    streamed = town.engine("b", options).fetch(starter.identity, table(starter), LIMIT_S)
    assert starter.content == source.content
    assert list(streamed.blocks) == [f"{LOCAL}:{named._port}"]
    assert not town.engine("c", Options(source=(RankSources(7, ("h:1",)),))).known(source.identity.family)


async def test_what_was_loaded_once_comes_again_and_is_told_as_ever(town: Town):
    first, second = Rank(LENGTHS, seed=1), Rank(LENGTHS, seed=1)
    await town.whole("a", first)
    streaming = await town.whole("b", second)
    told = len(town.board.history)
    for held in second.held:
        held[:] = bytes(len(held))
    streamed = streaming.fetch_again(second.identity, second.addresses, 30.0)
    assert second.content == first.content
    assert [name.split()[0] for name in streamed.blocks] == ["a"]
    assert all(seed.whole for engine, seed in town.board.history[told:] if engine == "b")


async def test_who_has_no_copy_just_now_is_nobodys_source(town: Town, monkeypatch: pytest.MonkeyPatch):
    """Nor is who is loading still. And who serves himself is not told that others do."""
    rank = Rank(LENGTHS, seed=1)
    fingerprint = rank.identity.fingerprint
    first, second = await town.whole("a", rank), await town.whole("b", rank)
    town.board.seeds["c", fingerprint] = Seed(host="h", port=1, family="f", total=2, have=1)
    for served in (False, True):
        first.offer(served=served)
        await eventually(lambda served=served: ((seed := town.board.seed("a")) and seed.port > 0) == served)
        second.offer(served=False)
        assert second.elsewhere(fingerprint) == served
    monkeypatch.setattr("engine_patch.streaming.WITHDRAW_S", 0.2)
    assert not second.elsewhere("another")
    second.offer(served=True)
    await eventually(lambda: (seed := town.board.seed("b")) is not None and seed.port > 0)
    assert not second.elsewhere(fingerprint)


class Neighbour:
    """Sources' memory as a window, without a daemon: one descriptor behind the addresses of a rank's first extent."""

    def __init__(self, rank: Rank) -> None:
        self.rank = rank
        self.opened: list[Window] = []
        self.broken = False
        self.descriptor = os.memfd_create("master")
        os.pwrite(self.descriptor, rank.content[0], 0)
        self.size = -(-LENGTHS[0] // mmap.PAGESIZE) * mmap.PAGESIZE
        os.ftruncate(self.descriptor, self.size)

    def place(self, address: int, length: int) -> int | None:
        at = address - self.rank.addresses[0]
        return at if 0 <= at <= LENGTHS[0] - length else None

    def lend(self) -> Loan:
        return Loan(Lent(master="m"), self.place)

    def borrow(self, lent: Lent) -> Window:
        if self.broken:
            raise TransferError("the daemon has no such master")
        self.opened.append(Window([(self.descriptor, self.size)]))
        return self.opened[-1]

    def near(self, machine: str = "node boot") -> Near:
        return Near(machine, self.lend, self.borrow)


@pytest.fixture
def neighbour() -> Iterator[Neighbour]:
    one = Neighbour(Rank(LENGTHS, seed=1))
    yield one
    os.close(one.descriptor)


@pytest.mark.parametrize("broken", [False, True])
async def test_memory_of_a_source_on_this_node_is_mapped(town: Town, neighbour: Neighbour, broken: bool):
    """What is not in it, or all of it where it cannot be mapped, comes over TCP."""
    neighbour.broken = broken
    await town.whole("a", neighbour.rank, near=neighbour.near())
    assert (seed := town.board.seed("a")) is not None
    assert seed.machine == "node boot"
    neighbour.rank.held[0][:] = neighbour.rank.held[0] if broken else bytes(LENGTHS[0])
    starter = Rank(LENGTHS)
    streamed = town.engine("b", near=neighbour.near()).fetch(starter.identity, table(starter), LIMIT_S)
    assert starter.content == Rank(LENGTHS, seed=1).content
    assert len(neighbour.opened) == (0 if broken else 1)
    assert ("no such master" in " ".join(streamed.reasons.values())) == broken
    for window in neighbour.opened:  # it was let go of
        with pytest.raises(PeerLost):
            window.take(0, starter.addresses[0], 1, Deadline.after(5))


@pytest.mark.parametrize("here", ["another node", ""])
async def test_memory_of_a_source_elsewhere_is_not_asked_for(town: Town, neighbour: Neighbour, here: str):
    await town.whole("a", neighbour.rank, near=neighbour.near())
    starter = Rank(LENGTHS)
    fetching = town.engine("b", near=neighbour.near(here) if here else None)
    fetching.fetch(starter.identity, table(starter), LIMIT_S)
    assert starter.content == neighbour.rank.content
    assert neighbour.opened == []


class Pages:
    """`Together`, played: `offered` is what an engine lets others lie in; `held` counts."""

    def __init__(self, offered: str = "") -> None:
        self.offered = offered
        self.asked: list[str] = []
        self.held: list[str] = []
        self.let_go_of = 0

    def offer(self, device: str) -> str:
        self.asked.append(device)
        return self.offered

    def hold(self, digest: str) -> bool:
        self.held.append(digest)
        return True

    def let_go(self) -> None:
        self.let_go_of += 1

    def near(self, neighbour: Neighbour, device: str = "n/0", machine: str = "node boot") -> Near:
        together = Together(device, self.offer, self.hold, self.let_go)
        return Near(machine, neighbour.lend, neighbour.borrow, together)


class Paged(Rank):
    """Its first extent lies in device pages."""

    def __init__(self, seed: int | None = None) -> None:
        super().__init__(LENGTHS, seed=seed)
        self.extents = (Extent("weights", LENGTHS[0], 0), Extent("norm", LENGTHS[1]))
        self.identity = identity(LENGTHS, layout=layout_digest(self.extents))


async def test_what_lies_in_pages_of_another_engine_is_not_fetched(town: Town, neighbour: Neighbour):
    """And nobody gets any of it from here before the engine lies in them."""
    source, starter, theirs, ours = Paged(seed=1), Paged(), Pages("digest"), Pages()
    await town.whole("a", source, near=theirs.near(neighbour))
    fetching = town.engine("b", near=ours.near(neighbour))
    streamed = fetching.fetch(starter.identity, table(starter), LIMIT_S)
    assert (theirs.asked, ours.held, ours.let_go_of) == (["n/0"], ["digest"], 0)
    assert streamed.blocks == dict.fromkeys(streamed.blocks, 1)
    assert starter.content == (bytes(LENGTHS[0]), source.content[1])
    assert (seed := town.board.seed("b")) is not None
    assert not seed.whole
    assert fetching._shelf.take(0.0) is None
    starter.held[0][:] = source.held[0]  # it has moved in
    fetching.serve(starter.identity, table(starter))
    await eventually(lambda: (seed := town.board.seed("b")) is not None and seed.whole)
    third = Paged()
    town.board.seeds.pop(("a", source.identity.fingerprint))
    town.engine("c").fetch(third.identity, table(third), LIMIT_S)
    assert third.content == source.content


@pytest.mark.parametrize("why", ["another machine", "nothing offered", "no pages of its own"])
async def test_pages_are_not_shared(town: Town, neighbour: Neighbour, why: str):
    source, starter, theirs, ours = Paged(seed=1), Paged(), Pages("digest"), Pages()
    theirs.offered = "" if why == "nothing offered" else "digest"
    there = neighbour.near() if why == "no pages of its own" else theirs.near(neighbour)
    await town.whole("a", source, near=there)
    near = ours.near(neighbour, machine="another" if why == "another machine" else "node boot")
    town.engine("b", near=near).fetch(starter.identity, table(starter), LIMIT_S)
    assert ours.held == []
    assert theirs.asked == (["n/0"] if why == "nothing offered" else [])
    assert starter.content == source.content


async def test_pages_that_are_held_are_let_go_of_where_the_rest_does_not_come(town: Town, neighbour: Neighbour):
    """Here because whoever else has the rest has other content."""
    source, other, starter, theirs, ours = Paged(seed=1), Paged(seed=2), Paged(), Pages("digest"), Pages()
    await town.whole("a", source, near=theirs.near(neighbour))
    hold = ours.hold

    def then_it_goes(digest: str) -> bool:
        town.board.seeds.pop(("a", source.identity.fingerprint))
        return hold(digest)

    ours.hold = then_it_goes  # type: ignore[method-assign]
    await town.whole("c", other)
    with pytest.raises(TransferError, match="differs from that of the pages that are held"):
        town.engine("b", near=ours.near(neighbour)).fetch(starter.identity, table(starter), LIMIT_S)
    assert (ours.held, ours.let_go_of) == (["digest"], 1)
    assert starter.content == (bytes(LENGTHS[0]), bytes(LENGTHS[1]))


async def test_over_torch_distributed(town: Town):
    source, starter = Rank(LENGTHS, seed=1), Rank(LENGTHS)
    await town.whole("a", source)
    streamed = town.engine("b", Options(transport="torch")).fetch(starter.identity, table(starter), LIMIT_S)
    assert starter.content == source.content
    assert streamed.reasons == {}


@pytest.mark.parametrize(
    ("theirs", "ours", "why"),
    [("cpu", "npu:0", "this torch has no hccl"), ("cuda:0", "cpu", "'gloo' for tensors on 'cuda:0'")],
)
async def test_who_cannot_be_joined_sends_over_tcp(
    town: Town, theirs: str, ours: str, why: str, caplog: pytest.LogCaptureFixture
):
    """Each side joins for the device of its own rank."""
    source, starter = Rank(LENGTHS, seed=1), Rank(LENGTHS)
    await town.whole("a", source, device=theirs)
    fetching = town.engine("b", Options(transport="torch"), device=ours)
    streamed = fetching.fetch(starter.identity, table(starter), LIMIT_S)
    assert starter.content == source.content
    assert why in " ".join(streamed.reasons.values())
    assert "sends over torch.distributed" not in caplog.text


async def test_who_gave_up_passes_nothing_on_any_more(town: Town):
    """A reader that hangs on a block of the half-loaded model is told so; it never gets a byte of what follows."""
    source, starter = Rank(LENGTHS, seed=1), Rank(LENGTHS)
    await town.whole("a", source)
    streaming = town.engine("b")
    streaming._begin(starter.identity, table(starter), 1.0)
    work = Work(source.manifest().grid.blocks, 8)
    streaming._began(source.manifest(), work)
    work.land(0)
    presence = streaming._shelf.take(0.0)
    assert presence is not None
    streaming._give_up()
    assert not presence.presence.await_block(0, 0.0)
    assert not presence.presence.await_block(1, 0.0)
    assert streaming._shelf.take(0.0) is None


def test_neither_itself_nor_who_serves_nothing_is_asked(town: Town):
    seed = Seed(host="h", port=1, family="f", total=1, have=1)
    quiet = Seed(host="h", port=0, family="f", total=1, have=1)
    town.board.seeds = {("b", "x"): seed, ("c", "x"): quiet, ("a", "x"): seed}
    streaming = town.engine("b")
    town.board.seeds["b", "x"] = seed
    assert [peer.name for peer in streaming._peers("x")] == ["a at h:1"]


async def test_a_taken_port_costs_the_serving_alone(town: Town, caplog: pytest.LogCaptureFixture):
    source, starter = Rank(LENGTHS, seed=1), Rank(LENGTHS)
    first = await town.whole("a", source)
    streaming = town.engine("b", Options(listen_port=first._port))
    assert "serves no weights" in caplog.text
    streaming.fetch(starter.identity, table(starter), LIMIT_S)
    assert starter.content == source.content
    await eventually(lambda: (seed := town.board.seed("b")) is not None and seed.port == 0)


def test_the_limit_holds_while_the_engine_has_requests(town: Town, monkeypatch: pytest.MonkeyPatch):
    """Also in the middle of a step that is longer than what counts as idle."""
    streaming = town.engine("a", Options(rate_limit=5.0))
    assert streaming._limit() == 0
    with streaming.stepping():
        with monkeypatch.context() as patch:
            patch.setattr(streaming_module, "BUSY_S", 0.0)
            assert streaming._limit() == 5.0
        monkeypatch.setattr(streaming_module, "BUSY_S", 60.0)
    assert streaming._limit() == 5.0
    monkeypatch.setattr(streaming_module, "BUSY_S", 0.0)
    assert streaming._limit() == 0


def test_addresses_are_written_for_upstreams_scripts(town: Town, tmp_path: Path):
    streaming = town.engine("a", Options(output_prefix=f"{tmp_path}/seed"))
    assert (tmp_path / "seed0.txt").read_text() == f"{LOCAL}:{streaming._port}"
    write_address(tmp_path / "six", "fd00::7", 1)
    assert (tmp_path / "six").read_text() == "[fd00::7]:1"


def test_a_full_disk_is_told_and_ends_nothing(town: Town, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    (tmp_path / "seed0.txt").symlink_to("/dev/full")
    streaming = town.engine("a", Options(output_prefix=f"{tmp_path}/seed"))
    assert "OUTPUT_PREFIX" in caplog.text
    assert "No space left" in caplog.text
    assert streaming._port
    assert not (tmp_path / "seed0.txt").exists()
