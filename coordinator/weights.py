"""How many bytes of weights a model folder holds, without reading them."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from coordinator.errors import VnpuError

_SHARD = re.compile(r"(.+)-[0-9]{5}-of-([0-9]{5})\.safetensors")


class WeightsError(VnpuError):
    """The folder holds no model that can be used; `fault` says why."""

    def __init__(self, fault: str, *, remedy: str) -> None:
        super().__init__(fault, remedy=remedy)
        self.fault = fault


class _Index(msgspec.Struct):
    """`model.safetensors.index.json` as Hugging Face writes it: which file holds which tensor."""

    weight_map: dict[str, str] = {}


def weight_bytes(folder: Path) -> int:
    """Bytes of the safetensors files vLLM will load from `folder`. Raises WeightsError where there is no such model."""
    if not folder.is_dir():
        raise WeightsError(f"there is no folder {folder}", remedy="mend the path, or make one: vnpu make-model OUT")
    if not (folder / "config.json").is_file():
        raise WeightsError(f"{folder} holds no config.json", remedy="name the folder of a Hugging Face model")
    files = _files(folder)
    if not files:
        raise WeightsError(f"{folder} holds no *.safetensors", remedy="convert the weights to safetensors")
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise WeightsError(f"{folder} lacks {missing[0]}, a part of its weights", remedy="fetch the model again")
    return sum(file.stat().st_size for file in files)


def _files(folder: Path) -> list[Path]:
    """The files of the index where there is one: folders often hold a second, consolidated copy beside it."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            named = msgspec.json.decode(index.read_bytes(), type=_Index).weight_map.values()
        except msgspec.MsgspecError:
            raise WeightsError(f"{index} is not readable JSON", remedy="fetch the model again") from None
        return [folder / name for name in sorted(set(named))]
    found = [file for file in folder.glob("*.safetensors") if not file.name.startswith("consolidated")]
    return sorted({one for file in found for one in _shards(file)})


def _shards(file: Path) -> list[Path]:
    """The file, and those that its name says there are: `model-00002-of-00003.safetensors` is one of three."""
    part = _SHARD.fullmatch(file.name)
    if part is None:
        return [file]
    return [file.with_name(f"{part[1]}-{n:05}-of-{part[2]}.safetensors") for n in range(1, int(part[2]) + 1)]
