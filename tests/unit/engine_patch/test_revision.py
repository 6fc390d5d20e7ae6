"""Which checkpoint: content counts, the path does not."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path

import pytest

from coordinator.errors import ConfigError
from engine_patch.revision import revision

DATA = bytes(range(256)) * 256


def checkpoint(folder: Path, data: bytes = DATA, *, config: str = "{}", names: tuple[str, str] = ("a", "b")) -> Path:
    folder.mkdir(parents=True)
    half = len(data) // 2
    places = {names[0]: (0, half), names[1]: (half, len(data))}
    header = json.dumps({n: {"dtype": "U8", "shape": [half], "data_offsets": at} for n, at in places.items()}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + data)
    (folder / "config.json").write_text(config)
    return folder


def test_the_path_does_not_count(tmp_path: Path):
    one = checkpoint(tmp_path / "one")
    assert revision(one) == revision(checkpoint(tmp_path / "two"))
    shutil.copytree(one, tmp_path / "three")
    assert revision(tmp_path / "three") == revision(one)


@pytest.mark.parametrize("at", [0, 4095, len(DATA) // 4, len(DATA) // 2 - 1, len(DATA) // 2, len(DATA) - 1])
def test_another_revision_at_the_same_path_is_noticed(tmp_path: Path, at: int):
    """First, middle and last bytes of each tensor."""
    before = revision(checkpoint(tmp_path / "m"))
    shutil.rmtree(tmp_path / "m")
    edited = bytearray(DATA)
    edited[at] ^= 1
    assert revision(checkpoint(tmp_path / "m", bytes(edited))) != before


def test_configuration_and_headers_count(tmp_path: Path):
    found = {
        revision(checkpoint(tmp_path / "1")),
        revision(checkpoint(tmp_path / "2", config='{"rope_theta": 1}')),
        revision(checkpoint(tmp_path / "3", names=("a", "c"))),
        revision(checkpoint(tmp_path / "4", DATA[:-2])),
    }
    assert len(found) == 4


def test_a_hugging_face_cache_names_its_files_by_content(tmp_path: Path):
    """Then not even the samples are read: an unreadable blob has a revision."""
    folder = checkpoint(tmp_path / "snapshots" / "rev")
    file = folder / "model.safetensors"
    found = set()
    for name in ("0" * 64, "1" * 64):
        blob = tmp_path / "blobs" / name
        blob.parent.mkdir(exist_ok=True)
        shutil.copy(file, blob) if not found else blob.write_bytes(b"")
        file.unlink()
        file.symlink_to(blob)
        found.add(revision(folder))
    assert len(found) == 2


def test_what_is_no_checkpoint(tmp_path: Path):
    with pytest.raises(ConfigError, match="convert"):
        revision(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"x")
    with pytest.raises(ConfigError, match="no safetensors file"):
        revision(tmp_path)
