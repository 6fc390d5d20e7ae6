"""Which engines a configuration makes, and where."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from coordinator.config import Config, load
from coordinator.errors import ConfigError
from coordinator.placement import engines
from coordinator.supervise.engine_command import cores_by_engine, engine_command

Load = Callable[[str], Config]


@pytest.fixture
def configured(tmp_path: Path) -> Load:
    """Devices small (64 MiB), middle and large (2 GiB, whose chunks are large); model a of 40 MB, `{model}`."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "config.json").write_text("{}")
    with (tmp_path / "a" / "model.safetensors").open("wb") as file:
        file.truncate(40 << 20)

    def of(model: str) -> Config:
        (tmp_path / "vnpu.yaml").write_text(
            "devices: [{id: small, capacity: 64MiB}, {id: middle, capacity: 96MiB}, {id: large, capacity: 2GiB}]\n"
            f"models:\n  a: {{path: a, {model}}}\n"
        )
        return load(tmp_path / "vnpu.yaml", {})

    return of


def test_one_engine_for_a_model_with_a_device_or_a_group(configured: Load) -> None:
    assert {id_: e.devices for id_, e in engines(configured("kv_cache: 1MiB, device: middle")).items()} == {
        "a": ("middle",)
    }
    pair = engines(configured("kv_cache: 1MiB, device: [small, middle]"))
    assert [(id_, e.name, e.devices) for id_, e in pair.items()] == [("a", "a", ("small", "middle"))]


def test_any_is_each_device_that_can_hold_it(configured: Load) -> None:
    assert list(engines(configured("kv_cache: 1MiB, device: any"))) == ["a@small", "a@middle", "a@large"]
    assert list(engines(configured("kv_cache: 40MiB, device: any"))) == ["a@middle", "a@large"]
    only = engines(configured("kv_cache: 200MiB, device: any"))
    assert [(id_, e.devices) for id_, e in only.items()] == [("a", ("large",))]


def test_any_that_none_can_hold_is_refused_for_the_largest(configured: Load) -> None:
    with pytest.raises(ConfigError, match="GiB of device large"):
        configured("kv_cache: 3GiB, device: any")


def test_several_engines_cannot_share_a_port(configured: Load) -> None:
    with pytest.raises(ConfigError, match=r"models\.a\.port: 3 engines cannot share one"):
        configured("kv_cache: 1MiB, device: any, port: 9001")
    assert engines(configured("kv_cache: 200MiB, device: any, port: 9001"))["a"].model.port == 9001


def test_each_has_its_own_name_device_and_cores_and_serves_the_model(configured: Load) -> None:
    config = configured("kv_cache: 40MiB, device: any")
    command = engine_command(config, "a@large", ["http://e:1"], 9001, "1", "/py", spare=False)
    assert (command.env["VNPU_ENGINE_ID"], command.env["VNPU_DEVICE"]) == ("a@large", "large")
    assert command.argv[command.argv.index("--served-model-name") + 1] == "a"
    assert cores_by_engine(config, [0, 1, 2]) == {"a@middle": "0", "a@large": "1"}
