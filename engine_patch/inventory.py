"""Who a rank's weights are: its `Identity`, from vLLM's configuration and the checkpoint."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import msgspec
import torch

from engine_patch import versions
from engine_patch.revision import revision
from engine_patch.tensors import Table
from transfer.netloader.identity import Identity
from transfer.netloader.manifest import layout_digest

_NO_CONTENT = ("_name_or_path", "transformers_version")
"""What a model's configuration says that changes no byte of its weights."""


def identity(vllm_config: Any, rank: int, folder: Path, name: str = "") -> Identity:
    """Without its layout, which is known when the model is built. `name` takes the place of the checkpoint's revision.

    Raises:
        ConfigError: the checkpoint cannot be read.
    """
    model, parallel = vllm_config.model_config, vllm_config.parallel_config
    tp = parallel.tensor_parallel_size
    return Identity(
        model=f"{name or revision(folder)} {_configuration(model.hf_config)}",
        dtype=str(model.dtype),
        quantization=str(model.quantization or ""),
        tp_rank=rank % tp,
        tp_size=tp,
        pp_rank=rank // tp,
        pp_size=parallel.pipeline_parallel_size,
        ep_rank=rank % tp if parallel.enable_expert_parallel else 0,
        ep_size=tp if parallel.enable_expert_parallel else 1,
        vllm=versions.installed() or "",
        kernels=f"cpu, torch {torch.__version__}",
        isa=tuple(sorted(flag for flag, there in torch.cpu.get_capabilities().items() if there is True)),
    )


def laid_out(one: Identity, table: Table) -> Identity:
    """The same, with the layout of what was built."""
    return msgspec.structs.replace(one, layout=layout_digest(table.extents))


def _configuration(hf_config: Any) -> str:
    """Digest of the model's configuration with the user's overrides: buffers, such as rotary tables, come from it."""
    fields = {key: value for key, value in hf_config.to_dict().items() if key not in _NO_CONTENT}
    # json, because these mappings have numbers for keys too, which msgspec does not sort.
    return hashlib.sha256(json.dumps(fields, sort_keys=True, default=str).encode()).hexdigest()[:16]
