"""Folders that look like models."""

from __future__ import annotations

from pathlib import Path


def model_folder(folder: Path, weights: int = 1000) -> Path:
    """A folder that looks like a model of `weights` bytes; the file is sparse."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    with (folder / "model.safetensors").open("wb") as file:
        file.truncate(weights)
    return folder
