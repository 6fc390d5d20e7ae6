"""`--model-loader-extra-config`: upstream's keys honoured, or refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from coordinator.engine_args import NETLOADER
from coordinator.errors import ConfigError
from engine_patch.loader_options import FORMAT, Options, read


def test_nothing_is_everything_by_default():
    assert read({}) == Options()


def test_upstreams_keys():
    options = read(
        {
            "SOURCE": [{"device_id": 0, "sources": ["10.0.0.1:29000", "[fd00::1]:1"]}, {"device_id": 1, "sources": []}],
            "MODEL": "org/a",
            "LISTEN_PORT": 29000,
            "OUTPUT_PREFIX": "/run/seed",
            "INT8_CACHE": "no",
            "INT8_CACHE_NAME": None,
        }
    )
    assert options.sources(0) == (("10.0.0.1", 29000), ("fd00::1", 1))
    assert options.sources(1) == ()
    assert (options.model, options.listen_port, options.output_prefix) == ("org/a", 29000, "/run/seed")


@pytest.mark.parametrize("cache", ["hbm", "dram"])
def test_int8_caches_are_refused_with_the_reason(cache: str):
    with pytest.raises(ConfigError, match=r"INT8_CACHE is not supported: weights are streamed as the kernels use them"):
        read({"INT8_CACHE": cache})


@pytest.mark.parametrize(
    ("extra", "named"),
    [
        ({"SOURCES": []}, "SOURCES"),
        ({"LISTEN_PORT": 70000}, "LISTEN_PORT"),
        ({"LISTEN_PORT": "29000"}, "LISTEN_PORT"),
        ({"SOURCE": "10.0.0.1:29000"}, "SOURCE"),
        ({"SOURCE": [{"device_id": 0, "sources": ["nowhere"]}]}, "nowhere"),
        ({"LOAD_FROM": "net"}, "LOAD_FROM"),
        ({"RATE_LIMIT": -1}, "RATE_LIMIT"),
        ("text", "JSON object"),
    ],
)
def test_what_cannot_be_used_is_named(extra: object, named: str):
    with pytest.raises(ConfigError, match=named):
        read(extra)


def test_a_file_holds_alone(tmp_path: Path):
    file = tmp_path / "net.json"
    with pytest.raises(ConfigError, match=r"net\.json"):
        read({"CONFIG_FILE": str(file)})
    file.write_text(json.dumps({"MODEL": "of the file"}))
    assert read({"CONFIG_FILE": str(file), "MODEL": "inline", "LISTEN_PORT": 1}) == Options(model="of the file")
    file.write_text("[]")
    with pytest.raises(ConfigError, match="CONFIG_FILE"):
        read({"CONFIG_FILE": str(file)})


def test_what_vnpu_up_asks_for_is_the_format_that_is_registered() -> None:
    assert FORMAT == NETLOADER
