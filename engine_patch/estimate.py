"""How many bytes of a device a model will need, before any of it is loaded: from the headers of its safetensors files.

The estimate is what the start-up token grants, so it must be an upper bound; what was mapped too much is given back
once the model is loaded, and the measured footprint takes its place.
"""

from __future__ import annotations

import struct
from pathlib import Path

import msgspec

from coordinator.core.model import Bytes
from coordinator.errors import ConfigError

PACKING = 1.03
"""oneDNN's packed weights against the checkpoint's bytes (measured: +3 %)."""
SPARE = 3
"""Times the largest tensor. The head is packed beside the embedding that it may share; while a layer is packed, its
plain and its packed form exist side by side, and vLLM merges two or three tensors of a layer into one. Measured on a
168 MB Qwen3: 186 MB in the end, 190 MB at most."""
MAX_HEADER = 100_000_000
"""safetensors' own bound on its JSON header, in bytes."""

_FLOATS = {"F64", "F32", "F16", "BF16"}
_LENGTH = struct.Struct("<Q")


class Weights(msgspec.Struct, frozen=True):
    """Bytes of all tensors of a checkpoint and of its largest, in the type they are computed in."""

    total: int
    largest: int


class _Tensor(msgspec.Struct):
    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


class _Index(msgspec.Struct):
    weight_map: dict[str, str] = {}


def weights(folder: Path, float_size: int) -> Weights:
    """Measure the checkpoint in `folder`; floating-point tensors count `float_size` bytes an element.

    Raises:
        ConfigError: there are no safetensors files, or one is damaged.
    """
    total = largest = 0
    for file in weight_files(folder):
        for tensor in _tensors(file):
            size = _size(tensor, float_size)
            total, largest = total + size, max(largest, size)
    if not total:
        raise ConfigError(f"{folder} holds no *.safetensors", remedy="convert the weights to safetensors")
    return Weights(total, largest)


def footprint(found: Weights, kv: int, ranks: int, chunk: int) -> Bytes:
    """Bytes by kind on each of `ranks` devices with chunks of `chunk` bytes: an upper bound, while loading too."""
    need = found.total * PACKING / ranks + SPARE * found.largest
    return Bytes(weights=_whole_chunks(int(need), chunk), kv=_whole_chunks(kv, chunk))


def _whole_chunks(size: int, chunk: int) -> int:
    return -(-size // chunk) * chunk


def _size(tensor: _Tensor, float_size: int) -> int:
    if tensor.dtype not in _FLOATS:
        return tensor.data_offsets[1] - tensor.data_offsets[0]
    count = 1
    for dimension in tensor.shape:
        count *= dimension
    return count * float_size


def weight_files(folder: Path) -> list[Path]:
    """The checkpoint's safetensors files: those of the index where there is one, for a folder may hold a second,
    consolidated copy."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            named = msgspec.json.decode(index.read_bytes(), type=_Index).weight_map.values()
        except msgspec.MsgspecError as error:
            raise ConfigError(f"{index}: {error}", remedy="fetch the model again") from error
        return [folder / name for name in sorted(set(named))]
    return sorted(file for file in folder.glob("*.safetensors") if not file.name.startswith("consolidated"))


def tensor_places(file: Path) -> tuple[int, list[tuple[int, int]]]:
    """Where a file's tensors lie: the offset of the first, and offset from there and size of each, in bytes.

    Raises:
        ConfigError: the file is damaged.
    """
    tensors = _tensors(file)
    with file.open("rb") as stream:
        (length,) = _LENGTH.unpack(stream.read(_LENGTH.size))
    places = [(low, high - low) for low, high in (tensor.data_offsets for tensor in tensors)]
    return _LENGTH.size + length, sorted(places)


def _tensors(file: Path) -> list[_Tensor]:
    """A safetensors file's header: 8 bytes of length, little-endian, then JSON (https://github.com/huggingface/safetensors)."""
    try:
        with file.open("rb") as stream:
            (length,) = _LENGTH.unpack(stream.read(_LENGTH.size))
            if length > MAX_HEADER:
                raise ValueError(f"its header claims {length} bytes")
            header = msgspec.json.decode(stream.read(length), type=dict[str, msgspec.Raw])
        return [msgspec.json.decode(raw, type=_Tensor) for name, raw in header.items() if name != "__metadata__"]
    except (OSError, ValueError, struct.error, msgspec.MsgspecError) as error:
        raise ConfigError(f"{file} is no safetensors file: {error}", remedy="fetch the model again") from error
