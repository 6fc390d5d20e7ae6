"""How many bytes of a device a model will need, before any of it is loaded: from the headers of its safetensors files.

The estimate is what the start-up token grants, so it must be an upper bound; what was mapped too much is given back
once the model is loaded, and the measured footprint takes its place.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

import msgspec

from coordinator.core.model import Bytes
from coordinator.errors import ConfigError
from engine_patch.sharded_linear.series import chosen

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


ON_EVERY_RANK = {"q_a_proj", "kv_a_proj_with_mqa", "wq_b", "gate", "shared_expert_gate"}
"""Parts of names of tensors that tensor parallelism does not spread: MLA's compressions, routers."""
MERGED = {"q_a_proj": "fused_qkv_a_proj", "kv_a_proj_with_mqa": "fused_qkv_a_proj"}
"""What vLLM calls the layer that it merges such a tensor into."""


class Weights(msgspec.Struct, frozen=True):
    """Bytes of all tensors of a checkpoint and of its largest, in the type they are computed in; of those that every
    rank holds whole; of those that ranks share (`sharded_linear`), and of the largest of these."""

    total: int
    largest: int
    replicated: int = 0
    shared: int = 0
    widest: int = 0


class Tensor(msgspec.Struct):
    """As the header has it; offsets in bytes from the first tensor."""

    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


class _Index(msgspec.Struct):
    weight_map: dict[str, str] = {}


def weights(folder: Path, float_size: int, shared: Sequence[str] = ()) -> Weights:
    """Measure the checkpoint in `folder`; floating-point tensors count `float_size` bytes an element. `shared`:
    patterns of layers that ranks share.

    Raises:
        ConfigError: there are no safetensors files, or one is damaged.
    """
    total = largest = replicated = common = widest = 0
    for file in weight_files(folder):
        for name, tensor in _tensors(file).items():
            size = _size(tensor, float_size)
            total, largest = total + size, max(largest, size)
            if any(chosen(layer, shared) for layer in _layer_names(name)):
                common, widest = common + size, max(widest, size)
            elif ON_EVERY_RANK & set(name.split(".")):
                replicated += size
    if not total:
        raise ConfigError(f"{folder} holds no *.safetensors", remedy="convert the weights to safetensors")
    return Weights(total, largest, replicated, common, widest)


def _layer_names(tensor: str) -> tuple[str, str]:
    """What vLLM may call the layer of a checkpoint's tensor."""
    *path, last, _ = ("", "", *tensor.split("."))
    plain = ".".join((*path, last)).lstrip(".")
    return plain, ".".join((*path, MERGED.get(last, last))).lstrip(".")


def footprint(found: Weights, kv: int, ranks: int, chunk: int) -> Bytes:
    """Bytes by kind on each of `ranks` devices with chunks of `chunk` bytes: an upper bound, while loading too."""
    spread = found.total - found.replicated - found.shared if ranks > 1 else found.total
    whole = found.replicated if ranks > 1 else 0
    need = (spread / ranks + whole) * PACKING + SPARE * found.largest
    weights = _whole_chunks(int(need), chunk) + sharing_room(found, ranks, chunk)
    return Bytes(weights=weights, kv=_whole_chunks(kv, chunk))


def sharing_room(found: Weights, ranks: int, chunk: int) -> int:
    """Of the footprint, bytes for layers that ranks share. While a rank loads, it has all of them: plain, and as they
    are processed, in an arena for each owner, with room for a layer (two tensors are merged into one at most) that is
    being processed."""
    if ranks < 2 or not found.shared:
        return 0
    need = found.shared * (1 + PACKING) + (ranks + 1) * (4 * found.widest + 2 * chunk)
    return _whole_chunks(int(need), chunk)


def _whole_chunks(size: int, chunk: int) -> int:
    return -(-size // chunk) * chunk


def _size(tensor: Tensor, float_size: int) -> int:
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
    tensors = _tensors(file).values()
    with file.open("rb") as stream:
        (length,) = _LENGTH.unpack(stream.read(_LENGTH.size))
    places = [(low, high - low) for low, high in (tensor.data_offsets for tensor in tensors)]
    return _LENGTH.size + length, sorted(places)


def named_tensors(file: Path) -> list[tuple[str, Tensor, int]]:
    """Name, description and offset in the file of each tensor, in the file's order. Raises ConfigError."""
    start, _ = tensor_places(file)
    rows = [(name, tensor, start + tensor.data_offsets[0]) for name, tensor in _tensors(file).items()]
    return sorted(rows, key=lambda row: row[2])


def _tensors(file: Path) -> dict[str, Tensor]:
    """A safetensors file's header: 8 bytes of length, little-endian, then JSON (https://github.com/huggingface/safetensors)."""
    try:
        with file.open("rb") as stream:
            (length,) = _LENGTH.unpack(stream.read(_LENGTH.size))
            if length > MAX_HEADER:
                raise ValueError(f"its header claims {length} bytes")
            header = msgspec.json.decode(stream.read(length), type=dict[str, msgspec.Raw])
        tensors = ((name, raw) for name, raw in header.items() if name != "__metadata__")
        return {name: msgspec.json.decode(raw, type=Tensor) for name, raw in tensors}
    except (OSError, ValueError, struct.error, msgspec.MsgspecError) as error:
        raise ConfigError(f"{file} is no safetensors file: {error}", remedy="fetch the model again") from error
