"""vLLM's side of Netloader: what is tried before disk, and what is said of it. vLLM's loaders, no engine."""

from __future__ import annotations

import asyncio
import warnings
from contextlib import closing
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import torch

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch deprecates what vLLM imports
    from vllm.config.load import LoadConfig

    from engine_patch import exchange, loader

from coordinator.errors import ConfigError
from engine_patch.loader import Bound, NetLoader
from engine_patch.loader_options import Options
from engine_patch.streaming import Streaming as RealStreaming
from tests.helpers.board import Board
from tests.helpers.board import table as board_table
from tests.helpers.eventually import eventually
from tests.helpers.weights import LOCAL, Rank
from tests.helpers.wires import TRUST
from transfer.errors import TransferError
from transfer.netloader import client

pytestmark = pytest.mark.engine


class Streaming:
    """Knows somebody for everything, and never gets anything. Each attempt takes `takes` seconds."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.limits: list[float] = []
        self.takes = 0.0
        self.now = 1000.0

    def known(self, family: str) -> bool:
        self.asked.append("known")
        return True

    def mismatches(self, identity: object) -> list[str]:
        return []

    def known_checkpoint(self) -> bool:
        return True

    def fetch(self, identity: object, table: object, limit_s: float) -> None:
        self._take(limit_s)
        raise TransferError("the peer is gone")

    def fetch_checkpoint(self, room: object, limit_s: float) -> None:
        self._take(limit_s)
        raise TransferError("the files are gone")

    def _take(self, limit_s: float) -> None:
        self.limits.append(limit_s)
        self.now += self.takes


class Disk:
    """The loader behind ours."""

    def load_model(self, vllm_config: object, model_config: object, prefix: str) -> str:
        return "from disk"


@pytest.fixture
def streaming(monkeypatch: pytest.MonkeyPatch) -> Streaming:
    one: Any = Streaming()
    arena: Any = SimpleNamespace(spilled_bytes=0, base=0, blocks=list)
    monkeypatch.setattr(loader, "_bound", Bound(one, Rank().identity, arena))
    return one


def configuration(**changes: object) -> Any:
    compilation = SimpleNamespace(static_forward_context={}, static_all_moe_layers=[])
    return SimpleNamespace(**{"speculative_config": None, "compilation_config": compilation, **changes})


def net_loader(**extra: object) -> NetLoader:
    made = NetLoader(LoadConfig(model_loader_extra_config=extra))
    made._disk = Disk()
    return made


def test_beside_a_draft_model_nothing_is_streamed(monkeypatch: pytest.MonkeyPatch):
    """Its weights lie in the same pages, and vLLM loads it by the same loader: neither fetched nor served."""
    monkeypatch.setattr(exchange.settings, "inherited", lambda: None)
    monkeypatch.setattr(exchange, "trust_from", lambda: TRUST)
    monkeypatch.setattr(loader, "_bound", None)
    arena: Any = SimpleNamespace(weights=SimpleNamespace(arena=None))
    drafted = configuration(speculative_config=object(), load_config=LoadConfig())
    here = exchange.Exchange(0, drafted, arena, "cpu")
    here.loaded(torch.nn.Linear(1, 1))
    assert net_loader().load_model(drafted, None) == "from disk"
    with pytest.raises(ConfigError, match="a draft model is loaded beside it"):
        net_loader(LOAD_FROM="peers").load_model(drafted, None)


def test_who_may_not_stream_loads_from_disk(streaming: Streaming, monkeypatch: pytest.MonkeyPatch):
    assert net_loader(LOAD_FROM="disk").load_model(configuration(), None) == "from disk"
    assert streaming.asked == []
    assert loader._bound is not None
    monkeypatch.setattr(loader, "_bound", loader._bound._replace(streaming=None, why="no key"))
    with pytest.raises(ConfigError, match="no peer gave the weights: no key"):
        net_loader(LOAD_FROM="peers").load_model(configuration(), None)


def test_weights_that_cannot_be_found_are_not_fetched(streaming: Streaming, monkeypatch: pytest.MonkeyPatch):
    """The reason is told, and what the model registered is gone before the next attempt."""

    class Quantised: ...

    class Model:
        def named_modules(self) -> list[tuple[str, object]]:
            return [("q", SimpleNamespace(quant_method=Quantised()))]

    def build(self: object, vllm_config: Any, *more: object) -> Model:
        vllm_config.compilation_config.static_forward_context["q"] = object()
        return Model()

    monkeypatch.setattr(NetLoader, "_build", build)
    asked = configuration()
    with pytest.raises(ConfigError, match=r"the layout of Quantised is not verified.*the files are gone"):
        net_loader(LOAD_FROM="peers").load_model(asked, None)
    assert asked.compilation_config.static_forward_context == {}


class Small:
    """A model of which everything is found."""

    def named_modules(self) -> list[tuple[str, object]]:
        return []


@pytest.mark.parametrize(
    ("building", "takes", "limits"),
    [(0, 40, [100, 60]), (10, 40, [90, 50]), (0, 100, [100]), (100, 0, []), (30, 80, [70])],
)
def test_one_limit_holds_for_all_that_is_tried_before_disk(
    streaming: Streaming, monkeypatch: pytest.MonkeyPatch, building: float, takes: float, limits: list[float]
):
    """Building the model counts too: the limit says when disk is taken at the latest."""

    def build(*_: object) -> Small:
        streaming.now += building
        return Small()

    monkeypatch.setattr(NetLoader, "_build", build)
    streaming.takes = takes
    made = NetLoader(LoadConfig(model_loader_extra_config={"LIMIT_S": 100}), clock=lambda: streaming.now)
    made._disk = Disk()
    assert made.load_model(configuration(), None) == "from disk"
    assert streaming.limits == limits


def test_a_limit_that_is_over_is_said(streaming: Streaming, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(NetLoader, "_build", lambda *_: Small())
    streaming.takes = 100
    made = NetLoader(
        LoadConfig(model_loader_extra_config={"LIMIT_S": 100, "LOAD_FROM": "peers"}), clock=lambda: streaming.now
    )
    with pytest.raises(ConfigError, match=r"the peer is gone; LIMIT_S is over \(100 s\)"):
        made.load_model(configuration(), None)


# ---- engines that are found and differ


async def test_a_mismatch_is_named_where_sources_are_discovered(monkeypatch: pytest.MonkeyPatch):
    """As a starter meets it: through the directory, where seeds hold digests alone."""
    board, old = Board(), Rank(seed=1, model="old c0ffee")
    ours = msgspec.structs.replace(Rank(model="new c0ffee").identity, layout="")
    arena: Any = SimpleNamespace(spilled_bytes=0, base=0, blocks=list)
    monkeypatch.setattr(client, "EMPTY_S", 0.1)
    monkeypatch.setattr(NetLoader, "_build", lambda *_: Small())
    with (
        closing(RealStreaming("a", 0, Options(), board.of("a"), TRUST, LOCAL)) as source,
        closing(RealStreaming("b", 0, Options(), board.of("b"), TRUST, LOCAL)) as starter,
    ):
        source.serve(old.identity, board_table(old))
        await eventually(lambda: (seed := board.seed("a")) is not None and seed.whole)
        where = rf"a at {LOCAL}:{source._port} says: "
        for identity, why in (
            (ours, rf"no running engine has them \[{where}model: 'old c0ffee' here, 'new c0ffee' there"),
            (msgspec.structs.replace(old.identity, layout=""), rf"no source is left \[{where}layout: "),
        ):
            monkeypatch.setattr(loader, "_bound", Bound(starter, identity, arena))
            with pytest.raises(ConfigError, match=why):
                await asyncio.to_thread(net_loader(LOAD_FROM="peers").load_model, configuration(), None)
