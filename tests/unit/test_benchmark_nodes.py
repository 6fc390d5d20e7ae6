"""The nodes of the benchmarks, which no test starts: their configurations are ones that `vnpu up` takes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import nodes
from benchmarks.async_runner import beside, designs
from benchmarks.async_runner import setting as async_runner
from benchmarks.kv_pull import tpot as kv_pull
from benchmarks.reality import setting as reality
from benchmarks.sharded_linear import engines as sharded_linear
from benchmarks.tax import setting as tax
from benchmarks.wake import setting as wake
from benchmarks.weight_stream import engines as weight_stream
from coordinator import config
from coordinator.supervise.layout import Process, RunFile
from tests.helpers.model_folder import model_folder

Made = Callable[[Path], dict[str, object]]
OF_MODELS: dict[str, tuple[Made, list[str]]] = {
    "wake": (wake.configuration, list(wake.SIZES)),
    "reality": (reality.configuration, ["-".join(kind) for kind in reality.KINDS.values()]),
    "tax": (tax.configuration, [tax.MODEL]),
}
OF_ONE: dict[str, Made] = {
    "kv_pull": kv_pull.configuration,
    "sharded_linear": sharded_linear.configuration,
    "weight_stream": weight_stream.configuration,
    "async_runner stream": beside.configuration,
}


def loaded(tree: dict[str, object], folder: Path) -> config.Config:
    return config.load(nodes.written(tree, folder), {})


@pytest.mark.parametrize("name", OF_MODELS)
def test_a_node_of_several_models(name: str, tmp_path: Path) -> None:
    made, folders = OF_MODELS[name]
    for folder in folders:
        model_folder(tmp_path / folder)
    assert loaded(made(tmp_path), tmp_path).models


@pytest.mark.parametrize("name", OF_ONE)
def test_a_node_of_one_model(name: str, tmp_path: Path) -> None:
    model_folder(tmp_path / "model")
    assert loaded(OF_ONE[name](tmp_path / "model"), tmp_path / "node").models


@pytest.mark.parametrize("design", designs.DESIGNS, ids=lambda one: one.name)
def test_both_engines_of_a_design(design: designs.Design, tmp_path: Path) -> None:
    model_folder(tmp_path / "model")
    for side in (design.ours, design.theirs):
        got = loaded(async_runner.configuration(side, tmp_path / "model"), tmp_path / "node")
        assert got.models[async_runner.NAME].async_runner == side.async_runner
        assert got.models[async_runner.NAME].pin


def test_only_engines_are_asked() -> None:
    of = {"pid": 1, "log": ""}
    found = RunFile(
        pid=1, ready=True, node="n", etcd=(), gateway="", admin="", socket="",
        processes=(Process(name="etcd", kind="etcd", url="http://e", **of),
                   Process(name="chat", kind="engine", url="http://c", **of)),
    )  # fmt: skip
    assert nodes.urls(found) == {"chat": "http://c"}
