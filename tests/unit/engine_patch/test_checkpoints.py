"""The checkpoint's own tensors from another engine: real safetensors files, no model."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine_patch import streaming as streaming_module
from engine_patch.checkpoints import Checkpoint, Room, open_files
from engine_patch.loader_options import Options, RankSources
from engine_patch.revision import revision
from engine_patch.streaming import Streaming
from tests.helpers.board import Board, table
from tests.helpers.eventually import eventually
from tests.helpers.weights import LOCAL, Rank
from tests.helpers.wires import TRUST
from transfer.errors import TransferError
from transfer.netloader import client
from transfer.netloader.checkpoint import FileSource, checkpoint_identity
from transfer.netloader.manifest import BLOCK, Extent, Manifest, manifest

LIMIT_S = 60.0


def make(folder: Path, seed: int = 1) -> Path:
    draw = torch.Generator().manual_seed(seed)
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text("{}")
    large = torch.randint(0, 256, (3 * BLOCK + 5,), dtype=torch.uint8, generator=draw)
    first = {"b.weight": torch.rand(40, 7, generator=draw).to(torch.bfloat16), "a.weight": large}
    second = {"c.scale": torch.rand(3, generator=draw), "d.none": torch.zeros(0), "e.flags": torch.tensor([True])}
    save_file(first, folder / "model-1.safetensors")
    save_file(second, folder / "model-2.safetensors")
    return folder


def stored(folder: Path) -> dict[str, torch.Tensor]:
    files = sorted(folder.glob("*.safetensors"))
    return {name: tensor for file in files for name, tensor in load_file(file).items() if tensor.numel()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make(tmp_path / "model")


class Town(ExitStack):
    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__()
        self.board = Board()
        self.checkpoint = checkpoint

    def engine(self, name: str, checkpoint: Checkpoint | None, options: Options = Options()) -> Streaming:  # noqa: B008
        made = Streaming(name, 0, options, self.board.of(name), TRUST, LOCAL, checkpoint=checkpoint)
        self.callback(made.close)
        return made

    async def source(self) -> Streaming:
        """Of other kernels than anybody who asks here."""
        rank, made = Rank(seed=1), self.engine("a", self.checkpoint)
        made.serve(rank.identity, table(rank))
        await eventually(lambda: (seed := self.board.seed("a")) is not None and seed.whole)
        return made


@pytest.fixture
def town(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Town]:
    monkeypatch.setattr(client, "EMPTY_S", 0.3)
    monkeypatch.setattr(client, "REST_S", 0.01)
    with Town(Checkpoint(revision(folder), folder)) as town:
        yield town


def same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> bool:
    equal = all(torch.equal(found[name], wanted[name]) for name in wanted if name in found)
    types = all(found[name].dtype is wanted[name].dtype for name in wanted if name in found)
    return found.keys() == wanted.keys() and equal and types


async def test_every_tensor_comes_as_the_checkpoint_has_it(town: Town, folder: Path):
    await town.source()
    starter, room = town.engine("b", town.checkpoint), Room()
    assert starter.known_checkpoint()
    streamed = starter.fetch_checkpoint(room, LIMIT_S)
    assert same(dict(room.tensors()), stored(folder))
    assert streamed.manifest.size == sum(one.nbytes for one in stored(folder).values())
    told = [seed for engine, seed in town.board.history if engine == "b"]
    assert all(seed.port == 0 for seed in told)
    await eventually(lambda: (seed := town.board.seed("b")) is not None and not seed.source)


async def test_before_its_first_block_a_source_may_read_for_as_long_as_there_is(
    town: Town, monkeypatch: pytest.MonkeyPatch
):
    """What comes after it is waited for like any block."""
    asked: list[object] = []

    class Client(client.Client):
        def __init__(self, *given: Any, **more: Any) -> None:
            asked.append(more.get("first_s"))
            super().__init__(*given, **more)

        def run(self, limit_s: float) -> client.Streamed:
            asked.append(limit_s)
            return super().run(limit_s)

    monkeypatch.setattr(streaming_module, "Client", Client)
    await town.source()
    town.engine("b", town.checkpoint).fetch_checkpoint(Room(), 77.0)
    other = Rank(model="of nobody")
    with pytest.raises(TransferError, match="no source is left"):
        town.engine("c", town.checkpoint).fetch(other.identity, table(other), 78.0)
    assert asked == [77.0, 77.0, None, 78.0]


async def test_tensors_outlive_the_room(town: Town, folder: Path):
    await town.source()
    room = Room()
    town.engine("b", town.checkpoint).fetch_checkpoint(room, LIMIT_S)
    kept = dict(room.tensors())
    del room
    assert same(kept, stored(folder))


async def test_a_source_by_address(town: Town, folder: Path):
    named = await town.source()
    options = Options(source=(RankSources(0, (f"{LOCAL}:{named._port}",)),))
    starter, room = town.engine("b", town.checkpoint, options), Room()
    assert starter.known_checkpoint()
    starter.fetch_checkpoint(room, LIMIT_S)
    assert same(dict(room.tensors()), stored(folder))


async def test_nobody_serves_it(town: Town, tmp_path: Path):
    other = Checkpoint(revision(make(tmp_path / "other", 2)), tmp_path / "other")
    starter = town.engine("b", other)
    assert not starter.known_checkpoint()
    await town.source()
    assert not starter.known_checkpoint()
    with pytest.raises(TransferError, match="no source is left"):
        starter.fetch_checkpoint(Room(), LIMIT_S)
    nothing = town.engine("c", None)
    assert not nothing.known_checkpoint()
    with pytest.raises(TransferError, match="not known which"):
        nothing.fetch_checkpoint(Room(), LIMIT_S)


async def test_another_revision_at_the_same_path_is_not_served(town: Town, folder: Path):
    """Noticed before the first byte; whoever asks is told that there is nothing."""
    await town.source()
    make(folder, 2)
    with pytest.raises(TransferError, match="gone"):
        town.engine("b", town.checkpoint).fetch_checkpoint(Room(), LIMIT_S)


async def test_files_that_change_later_never_become_a_model(town: Town, folder: Path):
    source = await town.source()
    town.engine("b", town.checkpoint).fetch_checkpoint(Room(), LIMIT_S)
    make(folder, 2)  # a new file at the same path: the old one is open, and goes on being served
    again = Room()
    town.engine("c", town.checkpoint).fetch_checkpoint(again, LIMIT_S)
    assert same(dict(again.tensors()), stored(make(folder, 1)))
    assert source._files is not None
    served = source._files.take(0.0)
    assert served is not None
    os.truncate(f"/proc/self/fd/{served._places[0].descriptor}", 2 * BLOCK)
    with pytest.raises(TransferError, match="no source is left"):
        town.engine("d", town.checkpoint).fetch_checkpoint(Room(), LIMIT_S)


def test_files_that_cannot_be_served_are_said(folder: Path, tmp_path: Path):
    with pytest.raises(TransferError, match="another revision"):
        open_files(Checkpoint("other", folder))
    assert isinstance(open_files(Checkpoint("a name", folder, named=True)), FileSource)
    empty = tmp_path / "empty"
    empty.mkdir()
    save_file({"none": torch.zeros(0)}, empty / "model.safetensors")
    with pytest.raises(TransferError, match="no tensors"):
        open_files(Checkpoint("x", empty, named=True))


@pytest.mark.parametrize(
    ("extent", "why"),
    [
        (Extent("t", 16, -1, "F32", (5,)), "no F32 of"),
        (Extent("t", 16, -1, "pickle", (4,)), "no pickle of"),
        (Extent("t", 1 << 46, -1, "U8", (1 << 46,)), "no memory"),
    ],
)
def test_what_is_no_tensor_is_refused_before_there_is_memory_for_it(extent: Extent, why: str):
    if extent.length > BLOCK:
        whole = Manifest(identity=checkpoint_identity("m"), extents=(extent,), sums=b"", digests=())
    else:
        whole = manifest(checkpoint_identity("m"), (extent,), [0])
    with pytest.raises(TransferError, match=why):
        Room().make(whole)
    assert list(Room().tensors()) == []
