"""Where a model's checkpoint lies on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def folder(model_config: Any) -> Path:
    """Its folder; a model that is only named is fetched as vLLM would."""
    if Path(model_config.model).is_dir():
        return Path(model_config.model)
    from huggingface_hub import snapshot_download

    patterns = ["*.safetensors", "*.safetensors.index.json"]
    return Path(snapshot_download(model_config.model, revision=model_config.revision, allow_patterns=patterns))
