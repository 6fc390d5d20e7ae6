"""What two engines must have in common before KV blocks of one are used by the other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from coordinator.errors import ConfigError
from engine_patch.kv_caches import shape
from tests.unit.engine_patch.test_revision import DATA, checkpoint


def form(
    folder: Path, *, dtype: str = "float32", heads: int = 4, block: int = 16, layers: int = 2, **config: Any
) -> str:
    """Of an engine of the model in `folder`, with vLLM's objects as far as they are read."""
    model = SimpleNamespace(
        model=str(folder),
        revision=None,
        dtype=dtype,
        use_mla=False,
        get_total_num_kv_heads=lambda: heads,
        hf_config=SimpleNamespace(to_dict=lambda: {"_name_or_path": str(folder), "hidden_size": 64, **config}),
    )
    spec = SimpleNamespace(block_size=block, head_size=32)
    group = SimpleNamespace(kv_cache_spec=spec, layer_names=[f"layers.{n}" for n in range(layers)])
    return shape(
        SimpleNamespace(model_config=model, cache_config=SimpleNamespace(cache_dtype="auto")),
        SimpleNamespace(kv_cache_groups=[group], num_blocks=8),
    ).form


def test_copies_of_one_model_are_of_one_form(tmp_path: Path):
    assert form(checkpoint(tmp_path / "one")) == form(checkpoint(tmp_path / "two"))


def test_another_fine_tune_is_of_another_form(tmp_path: Path):
    """Its keys and values mean nothing to the other, whatever the two are called."""
    other = bytes(reversed(DATA))
    assert form(checkpoint(tmp_path / "one")) != form(checkpoint(tmp_path / "two", other))


@pytest.mark.parametrize(
    "alike",
    [
        lambda folder: form(folder, dtype="bfloat16"),
        lambda folder: form(folder, heads=2),
        lambda folder: form(folder, block=32),
        lambda folder: form(folder, layers=3),
        lambda folder: form(folder, rope_theta=1e6),
    ],
)
def test_whatever_changes_the_bytes_changes_the_form(tmp_path: Path, alike: Callable[[Path], str]):
    folder = checkpoint(tmp_path / "one")
    assert alike(folder) != form(folder)


def test_weights_that_cannot_be_told_apart_are_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"no \*\.safetensors"):
        form(tmp_path)
