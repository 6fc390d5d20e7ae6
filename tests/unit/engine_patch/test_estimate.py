"""Footprints from safetensors headers."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from coordinator.core.model import Bytes, Device, Holder
from coordinator.errors import ConfigError
from engine_patch.estimate import Weights, footprint, sharing_room, weights
from engine_patch.plan import Plan, first_spec
from engine_patch.settings import Settings

CHUNK = 2 << 20


def write(path: Path, tensors: dict[str, tuple[str, list[int], int]]) -> None:
    """Headers only: (dtype, shape, bytes)."""
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name, (dtype, shape, size) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}  # type: ignore[dict-item]
        at += size
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text)


def test_floats_count_in_the_type_they_are_computed_in(tmp_path: Path):
    write(tmp_path / "model.safetensors", {"a": ("F32", [10, 4], 160), "b": ("BF16", [6], 12), "ids": ("I64", [2], 16)})
    assert weights(tmp_path, 2) == Weights(total=80 + 12 + 16, largest=80)
    assert weights(tmp_path, 4) == Weights(total=160 + 24 + 16, largest=160)


def test_only_the_files_of_the_index_count(tmp_path: Path):
    write(tmp_path / "one.safetensors", {"a": ("BF16", [10], 20)})
    write(tmp_path / "other.safetensors", {"b": ("BF16", [1000], 2000)})
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "one.safetensors"}}))
    assert weights(tmp_path, 2).total == 20


def test_a_consolidated_copy_beside_the_model_does_not_count(tmp_path: Path):
    write(tmp_path / "model.safetensors", {"a": ("BF16", [10], 20)})
    write(tmp_path / "consolidated.safetensors", {"a": ("BF16", [10], 20)})
    assert weights(tmp_path, 2).total == 20


@pytest.mark.parametrize("content", [b"", b"\xff" * 64, struct.pack("<Q", 4) + b"nope", struct.pack("<Q", 2) + b"[]"])
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes):
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ConfigError, match=r"model\.safetensors"):
        weights(tmp_path, 2)


def test_a_folder_without_weights_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"no \*\.safetensors"):
        weights(tmp_path, 2)


def test_the_footprint_is_whole_chunks_and_covers_what_was_measured():
    """A 168 MB Qwen3, largest tensor 8.4 MB: 190.1 MB at most while it was loaded."""
    need = footprint(Weights(167_800_000, 8_400_000), 64 << 20, 1, CHUNK)
    assert need.kv == 64 << 20
    assert need.weights % CHUNK == 0
    assert 190_100_000 <= need.weights <= 1.25 * 167_800_000


def test_ranks_share_the_weights_but_each_has_its_kv():
    one, two = (footprint(Weights(1 << 30, 1 << 20), 1 << 20, ranks, CHUNK) for ranks in (1, 2))
    assert two.weights < 0.6 * one.weights
    assert one.kv == two.kv == CHUNK


def test_what_every_rank_holds_whole_and_what_ranks_share_is_told_apart(tmp_path: Path):
    names = ("q_a_proj", "kv_a_proj_with_mqa", "q_b_proj", "o_proj")
    tensors = {f"model.layers.0.self_attn.{name}.weight": ("BF16", [10 * n], 20 * n) for n, name in enumerate(names, 1)}
    write(tmp_path / "model.safetensors", {**tensors, "model.layers.0.mlp.gate.weight": ("BF16", [4], 8)})
    assert weights(tmp_path, 2) == Weights(total=208, largest=80, replicated=68)
    found = weights(tmp_path, 2, ["fused_qkv_a_proj"])
    assert found == Weights(total=208, largest=80, replicated=8, shared=60, widest=40)
    assert weights(tmp_path, 2, ["self_attn.o_proj"]).shared == 80


def test_replicated_weights_are_on_every_rank_and_shared_ones_while_loading_twice():
    plain, replicated, shared = (
        footprint(Weights(1 << 30, 1 << 20, **more), 0, 2, CHUNK).weights
        for more in ({}, {"replicated": 1 << 28}, {"shared": 1 << 28, "widest": 1 << 20})
    )
    assert replicated > plain + 0.49 * (1 << 28)
    assert shared > plain + 1.5 * (1 << 28)
    assert sharing_room(Weights(1 << 30, 1 << 20, shared=1 << 28), 1, CHUNK) == 0
    assert footprint(Weights(1 << 30, 1 << 20, 1 << 28), 0, 1, CHUNK) == footprint(
        Weights(1 << 30, 1 << 20), 0, 1, CHUNK
    )


def _device(capacity: int) -> Device:
    return Device(driver="host", capacity=capacity, chunk=CHUNK, epoch="e")


def _plan() -> Plan:
    return Plan(model="m", url="u", pid=1, boot_id="b", weights=Weights(50 << 20, 1 << 20), kv=4 << 20)


def test_the_first_spec_is_estimated():
    settings = Settings(endpoints=("x",))
    spec = first_spec(_plan(), settings, Holder("m", "n"), [_device(128 << 20)])
    assert (spec.measured, spec.devices, spec.footprint.kv) == (False, ("local/0",), 4 << 20)
    assert isinstance(spec.footprint, Bytes)


def test_an_engine_for_another_driver_than_the_devices_is_refused():
    with pytest.raises(ConfigError, match=r"has the driver host, this engine was started for ascend.*VNPU_DRIVER=host"):
        first_spec(_plan(), Settings(endpoints=("x",), driver="ascend"), Holder("m", "n"), [_device(128 << 20)])


def test_a_model_that_no_device_holds_is_refused_with_figures():
    with pytest.raises(ConfigError, match=r"60 MiB of device local/0.*has 32 MiB.*raise"):
        first_spec(_plan(), Settings(endpoints=("x",)), Holder("m", "n"), [_device(32 << 20)])
