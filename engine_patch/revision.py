"""Which checkpoint this is: a digest of its revision, from a few reads and not from its path.

Of every weights file count: its name and size, its header (names, types, shapes and places of all tensors), and three
samples of 4 KiB of each tensor; or, where the file lies in a Hugging Face cache, the SHA-256 that it is named by there.
`config.json` counts whole. A training step changes every tensor almost everywhere, so another revision at the same path
is noticed; an edit of single values elsewhere in a tensor is not, which is why sources whose content differs are never
mixed (`transfer.netloader.client`).
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from coordinator.errors import ConfigError
from engine_patch.estimate import tensor_places, weight_files

SAMPLE = 4096
_BLOB = re.compile(r"[0-9a-f]{64}")


def revision(folder: Path) -> str:
    """32 hexadecimal digits.

    Raises:
        ConfigError: there are no safetensors files, or one cannot be read.
    """
    total = hashlib.sha256()
    files = weight_files(folder)
    if not files:
        raise ConfigError(f"{folder} holds no *.safetensors", remedy="convert the weights to safetensors")
    try:
        config = folder / "config.json"
        total.update(config.read_bytes() if config.is_file() else b"")
        for file in files:
            total.update(_one(file))
    except OSError as error:
        raise ConfigError(f"{folder}: {error}", remedy="fetch the model again") from error
    return total.hexdigest()[:32]


def _one(file: Path) -> bytes:
    """A digest of one file."""
    real = file.resolve()
    if real.parent.name == "blobs" and _BLOB.fullmatch(real.name):
        return hashlib.sha256(b"blob" + real.name.encode()).digest()
    digest = hashlib.sha256(f"{file.name}\0{real.stat().st_size}\0".encode())
    start, places = tensor_places(file)
    with real.open("rb") as stream:
        digest.update(stream.read(start))
        for offset, length in _samples(start, places):
            digest.update(os.pread(stream.fileno(), length, offset))
    return digest.digest()


def _samples(start: int, places: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Offset and length of the first, middle and last bytes of each tensor, which lies at `start` + its own offset."""
    for offset, size in places:
        length = min(SAMPLE, size)
        for at in sorted({0, (size - length) // 2, size - length}):
            yield start + offset + at, length
