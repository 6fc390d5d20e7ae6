"""`python -m coordinator`: what its options and the configuration become, and how it fails."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from coordinator.__main__ import main, settings
from coordinator.admin.app import Settings as AdminSettings
from coordinator.config import load
from coordinator.configured import scheduler
from coordinator.core.model import ModelId
from coordinator.core.scheduler import Scheduler
from coordinator.core.settings import Settings as ModelSettings
from coordinator.errors import ConfigError
from coordinator.runtime import Runtime, Settings
from coordinator.store.memory import MemoryEtcd
from tests.helpers.coordinator import config_file

TEXT = """
devices: [{id: 0, capacity: 1GiB}]
gateway: {listen: "127.0.0.1:7000", max_queue: 9, max_wait: 20s}
admin: {listen: "127.0.0.1:7001", api_key: secret}
defaults: {keep_alive: 1m, min_residency: 3s, priority: 2}
models:
  a: {path: ./a, kv_cache: 1MiB, pin: true, max_wait: 5s}
  b: {path: ./a, kv_cache: 1MiB, keep_alive: 2m}
"""


@pytest.fixture(autouse=True)
def not_for_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a coordinator sets for itself (test_process.py) would stay for all tests after these."""
    for name in ("settle", "raise_file_limit"):
        monkeypatch.setattr(f"coordinator.__main__.{name}", lambda: None)
    monkeypatch.setattr("coordinator.__main__.log_to_stderr", lambda level: None)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = config_file(tmp_path, ["a"])
    file.write_text(TEXT)
    return file


def test_the_configuration_becomes_settings(config: Path) -> None:
    told = settings(load(config, {}), "c1", {"VNPU_ENGINE_HOSTS": "engine-a, engine-b,"})
    assert told.id == "c1"
    assert (told.gateway.port, told.gateway.max_queue, told.gateway.models) == (7000, 9, ("a", "b"))
    assert (told.admin.port, told.admin.api_key) == (7001, "secret")
    assert told.gateway.trusted_hosts == told.admin.trusted_hosts == ("engine-a", "engine-b")


def test_models_are_treated_as_configured(config: Path) -> None:
    core = scheduler(load(config, {}))
    assert core.settings(ModelId("a")) == ModelSettings(True, 2, 60.0, 3.0, 5.0)
    assert core.settings(ModelId("b")) == ModelSettings(False, 2, 120.0, 3.0, 20.0)
    assert core.settings(ModelId("unconfigured")) == ModelSettings(False, 2, 60.0, 3.0, 20.0)


@pytest.mark.parametrize("missing", ["file", "etcd"])
def test_wrong_use_ends_with_2_and_one_line(config: Path, missing: str, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(config.parent / "nowhere.yaml") if missing == "file" else str(config)
    assert main(["--config", file], {}) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1


async def test_a_coordinator_whose_orders_anybody_could_give_is_not_made() -> None:
    told = Settings(id="c1", admin=AdminSettings(host="0.0.0.0", port=0))
    with pytest.raises(ConfigError, match="api_key"):
        Runtime(told, MemoryEtcd().client(), Scheduler())


def test_what_is_configured_can_be_shown(config: Path) -> None:
    """The admin API tells it in JSON, which knows no durations of ours."""
    core = scheduler(load(config, {}))
    for model in ("a", "unconfigured"):
        assert json.loads(msgspec.json.encode(core.settings(ModelId(model))))["min_residency"] >= 0
