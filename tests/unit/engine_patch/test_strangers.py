"""Engines of the same model that cannot be sources say what differs: through the directory, as a starter finds them."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import msgspec
import pytest

from engine_patch import strangers
from engine_patch.checkpoints import Checkpoint
from engine_patch.loader_options import Options, RankSources
from engine_patch.streaming import Streaming
from tests.helpers.board import Board, table
from tests.helpers.eventually import eventually
from tests.helpers.weights import LOCAL, Rank
from tests.helpers.wires import TRUST
from transfer.errors import TransferError
from transfer.netloader.identity import Identity

MODEL = "revision c0ffee"


class Town(ExitStack):
    def __init__(self) -> None:
        super().__init__()
        self.board = Board()
        self._held: list[Rank] = []

    def engine(self, name: str, options: Options = Options(), rank: int = 0, **more: Any) -> Streaming:  # noqa: B008
        streaming = Streaming(name, rank, options, self.board.of(name), TRUST, LOCAL, **more)
        self.callback(streaming.close)
        return streaming

    async def source(self, name: str, rank: int = 0, checkpoint: Checkpoint | None = None, **changes: Any) -> str:
        """Its name, as it is told."""
        held = Rank(**{"seed": 1, "model": MODEL, **changes})
        self._held.append(held)
        streaming = self.engine(name, rank=rank, checkpoint=checkpoint)
        streaming.serve(held.identity, table(held))
        await eventually(lambda: (seed := self.board.seed(name)) is not None and seed.whole)
        return f"{name} at {LOCAL}:{streaming._port}"


@pytest.fixture
def town() -> Iterator[Town]:
    with Town() as town:
        yield town


def mine(**changes: Any) -> Identity:
    """Of a starter that has not built its model yet."""
    return msgspec.structs.replace(Rank(**{"model": MODEL, **changes}).identity, layout="")


@pytest.mark.parametrize(
    ("field", "value", "line"),
    [
        (
            "model",
            "edited c0ffee",
            "model: 'edited c0ffee' here, 'revision c0ffee' there "
            "(the checkpoints differ: fetch the same revision on both machines)",
        ),
        ("dtype", "float32", "dtype: 'float32' here, 'bfloat16' there (give both engines the same arguments)"),
        ("vllm", "0.31.0", "vllm: '0.31.0' here, '0.32.0' there (install the same vLLM on both machines)"),
    ],
)
async def test_what_differs_is_named_and_nothing_else(town: Town, field: str, value: str, line: str):
    """Not the layout, which a starter does not know yet."""
    name = await town.source("a", **{field: value})
    starter = town.engine("b")
    assert not starter.known(mine().family)
    assert starter.mismatches(mine()) == [f"{name} says: {line}"]


async def test_another_layout_is_named_once_it_is_known(town: Town):
    name = await town.source("a")
    other = Rank((7, 64), model=MODEL)
    starter = town.engine("b")
    assert starter.known(other.identity.family)
    [said] = starter.mismatches(other.identity)
    assert said.startswith(f"{name} says: layout: ")
    assert said.endswith("(the weights lie differently in memory: give both engines the same arguments)")


async def test_whoever_is_of_the_same_checkpoint_is_asked_before_other_revisions(town: Town, tmp_path: Any):
    checkpoint = Checkpoint("revision", tmp_path)
    await town.source("a", model="edited c0ffee")
    near = await town.source("b", checkpoint=checkpoint, model="revision tea", dtype="float32")
    far = await town.source("c", model="also c0ffee")
    town.board.seeds["a", "z"] = msgspec.structs.replace(town.board.seeds.pop(_key(town, "a")), have=0)
    said = town.engine("d", checkpoint=checkpoint).mismatches(mine())
    assert [one.split(" says: ")[0] for one in said] == [near, far]


def _key(town: Town, engine: str) -> tuple[str, str]:
    return next(key for key in town.board.seeds if key[0] == engine)


async def test_two_are_asked_at_most(town: Town):
    names = [await town.source(name, dtype="float32") for name in "abc"]
    said = town.engine("d").mismatches(mine())
    assert [one.split(" says: ")[0] for one in said] == names[:2]


async def test_others_are_not_asked(town: Town):
    """Of another model or rank, who serves nothing just now, and oneself."""
    await town.source("a", model="revision tea")
    await town.source("b", rank=1, dtype="float32")
    await town.source("c", dtype="float32")
    key = _key(town, "c")
    town.board.seeds[key] = msgspec.structs.replace(town.board.seeds[key], port=0)
    await town.source("d", dtype="float16")
    starter = town.engine("d")
    assert strangers.relatives(town.board.of("d"), "d", 0, mine(), "") == []
    assert starter.mismatches(mine()) == []


async def test_where_sources_are_named_they_alone_are_asked(town: Town):
    await town.source("a", dtype="float32")
    assert town.engine("b", Options(source=(RankSources(0, ("h:1",)),))).mismatches(mine()) == []


async def test_who_is_silent_or_gone_costs_a_bounded_time(town: Town, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(strangers, "LIMIT_S", 0.3)
    await town.source("a", dtype="float32")
    with socket.create_server((LOCAL, 0)) as silent:
        key = _key(town, "a")
        seed = town.board.seeds[key]
        town.board.seeds[key] = msgspec.structs.replace(seed, port=silent.getsockname()[1])
        assert town.engine("b").mismatches(mine()) == []
    assert town.engine("c").mismatches(mine()) == []


async def test_a_long_answer_is_cut(town: Town):
    await town.source("a", dtype="f" * 1000)
    [said] = town.engine("b").mismatches(mine())
    assert len(said) < strangers.LENGTH + 100


def test_an_agent_that_does_not_answer_names_nothing(town: Town, monkeypatch: pytest.MonkeyPatch):
    def find(**_: str) -> None:
        raise TransferError("no agent")

    starter = town.engine("b")
    monkeypatch.setattr(starter._desk, "find", find)
    assert starter.mismatches(mine()) == []


def test_kin_is_the_configuration_behind_a_revision_or_a_name_of_any_words():
    assert mine().kin == mine(model="a name of ours c0ffee", dtype="float32").kin == "c0ffee"
