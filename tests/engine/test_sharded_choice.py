"""Which carrier a group of ranks takes: asked for, or found out together."""

from __future__ import annotations

import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch deprecates what vLLM imports
    from engine_patch.sharded_linear import carriers, layers, rows
from engine_patch.sharded_linear.carriers import Broadcasting, Mapped
from engine_patch.sharded_linear.options import Options
from engine_patch.sharded_linear.series import Unshareable

pytestmark = pytest.mark.engine


class Group:
    """Two ranks. `other`: what the second one tells of itself; None: the same as the first."""

    timeout_s = 1.0
    me = 0
    size = 2

    def __init__(self, other: bytes | None) -> None:
        self._other = other

    def exchange(self, mine: bytes, what: str) -> list[bytes]:
        return [mine, mine if self._other is None else self._other]


@pytest.fixture
def daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(carriers, "Pages", lambda *of: SimpleNamespace())
    monkeypatch.setattr(carriers, "Paged", lambda *of: SimpleNamespace())
    path = tmp_path / "daemon.sock"
    path.touch()
    return str(path)


def made(carrier: Any, daemon: str, *, other: bytes | None = None, driver: str = "host", eager: bool = True) -> Any:
    hands: Any = SimpleNamespace(driver=SimpleNamespace(name=driver), weights=SimpleNamespace(chunk=1 << 21))
    group: Any = Group(other)
    return carriers.make(Options(("o_proj",), carrier=carrier), hands, group, "engine", daemon, eager=eager)


@pytest.mark.parametrize(("carrier", "kind"), [("auto", Mapped), ("mapped", Mapped), ("broadcast", Broadcasting)])
def test_ranks_that_share_host_memory_map_unless_told_otherwise(carrier: str, kind: type, daemon: str) -> None:
    assert type(made(carrier, daemon)) is kind


@pytest.mark.parametrize("where", [{"other": b"another machine"}, {"driver": "ascend"}, {"driver": "cuda"}])
def test_ranks_that_do_not_share_it_broadcast(where: dict[str, Any], daemon: str) -> None:
    assert type(made("auto", daemon, **where)) is Broadcasting
    with pytest.raises(Unshareable, match=r"do not share host memory.*carrier: broadcast, or auto"):
        made("mapped", daemon, **where)


def test_a_compiled_graph_maps_but_does_not_broadcast(daemon: str) -> None:
    assert type(made("auto", daemon, eager=False)) is Mapped
    with pytest.raises(Unshareable, match="broadcast need eager mode"):
        made("auto", daemon, other=b"another machine", eager=False)


@pytest.mark.parametrize("eager", [True, False])
def test_a_compiled_graph_multiplies_whole_layers(eager: bool, daemon: str, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[str] = []
    monkeypatch.setattr(rows, "divides", lambda *of: True)
    monkeypatch.setattr(layers, "plain_kernel", taken.append)
    made("mapped", daemon, eager=eager).prepare((SimpleNamespace(layers=("a",)),), {"a": "module"})
    assert taken == (["module"] if eager else [])
