"""vLLM's KV caches as the transfer sees them: views as vLLM 0.32 makes them, `[blocks, heads, tokens, content]`."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from coordinator.errors import ConfigError
from engine_patch import kv_caches
from engine_patch.kv_caches import groups, keeps_parts, shape
from transfer.kv.layout import cpu_packed
from transfer.kv.reader import Span

BLOCKS, TOKENS, HEADS, HEAD = 5, 16, 4, 32
CELL = TOKENS * 2 * HEAD * 4
LATENT = 576
LATENT_CELL = TOKENS * LATENT * 2


def config(*names: tuple[str, ...], block: int = TOKENS) -> Any:
    """KVCacheConfig, a group for each of `names`."""
    spec = SimpleNamespace(block_size=block)
    found = [SimpleNamespace(kv_cache_spec=spec, layer_names=list(layers)) for layers in names]
    return SimpleNamespace(kv_cache_groups=found, num_blocks=BLOCKS)


def cache(heads: int = HEADS, width: int = 2 * HEAD, dtype: torch.dtype = torch.float32, layers: int = 1) -> Any:
    """Views of layers that share one buffer, block by block."""
    whole = torch.zeros(BLOCKS, layers, heads, TOKENS, width, dtype=dtype)
    return [whole[:, layer] for layer in range(layers)]


def test_heads_lie_apart_and_a_block_of_a_head_is_one_cell() -> None:
    first, second = cache(layers=2)
    [group] = groups(config(("a", "b")), {"a": first, "b": second})
    assert group.layout == cpu_packed(BLOCKS, TOKENS, HEADS, CELL, block_stride=2 * HEADS * CELL)
    extent = (BLOCKS - 1) * 2 * HEADS * CELL + HEADS * CELL
    assert group.layers == (Span(first.data_ptr(), extent), Span(second.data_ptr(), extent))
    assert second.data_ptr() - first.data_ptr() == HEADS * CELL


def test_a_latent_cache_has_one_head_whose_block_is_one_cell() -> None:
    """K and V of MLA are one vector a token, in the type of the model."""
    layers = cache(heads=1, width=LATENT, dtype=torch.bfloat16, layers=3)
    [group] = groups(config(("a", "b", "c")), dict(zip("abc", layers, strict=True)))
    assert group.layout == cpu_packed(BLOCKS, TOKENS, 1, LATENT_CELL, block_stride=3 * LATENT_CELL)
    assert group.layout.block_bytes == LATENT_CELL
    assert len(group.layers) == 3


def test_each_group_has_a_layout_of_its_own() -> None:
    [wide], [narrow] = cache(), cache(heads=2)
    found = groups(config(("a",), ("b",)), {"a": wide, "b": narrow})
    assert [group.layout.heads for group in found] == [HEADS, 2]
    assert [group.layers[0].address for group in found] == [wide.data_ptr(), narrow.data_ptr()]


def test_layers_of_one_group_that_lie_unlike_are_refused_by_name() -> None:
    [one], [other] = cache(), cache(heads=2)
    with pytest.raises(ConfigError, match="the layers a, b of one KV group differ"):
        groups(config(("a", "b")), {"a": one, "b": other})


@pytest.mark.parametrize(
    "strange",
    [
        torch.zeros(BLOCKS, TOKENS, LATENT),  # no dimension of heads
        torch.zeros(BLOCKS, HEADS, 2 * TOKENS, 2 * HEAD),  # blocks that the kernel splits
        torch.zeros(BLOCKS, TOKENS, HEADS, 2 * HEAD).transpose(1, 2),  # tokens before heads
        torch.zeros(BLOCKS, HEADS, TOKENS, 4 * HEAD)[..., : 2 * HEAD],  # room between tokens
        torch.zeros(BLOCKS, 1, TOKENS, 2 * LATENT)[..., :LATENT],  # the same of one head
        torch.zeros(BLOCKS, 2 * HEADS, TOKENS, 2 * HEAD)[:, ::2],  # room between heads
    ],
)
def test_what_lies_another_way_is_refused_by_name(strange: torch.Tensor) -> None:
    with pytest.raises(ConfigError, match=r"^model\.layers\.7: .* cannot be pulled"):
        groups(config(("model.layers.7",)), {"model.layers.7": strange})


@pytest.mark.parametrize(("mla", "heads"), [(False, HEADS), (True, 1)])
def test_a_latent_model_has_one_head_whatever_its_configuration_counts(
    mla: bool, heads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    formed = []
    monkeypatch.setattr(kv_caches, "_form", lambda engine, caches, heads: formed.append(heads) or "form")
    model = SimpleNamespace(use_mla=mla, get_total_num_kv_heads=lambda: HEADS)
    found = shape(SimpleNamespace(model_config=model), config(("a",), ("b",)))
    assert (found.form, found.block_tokens, found.blocks) == ("form", (TOKENS, TOKENS), BLOCKS)
    assert (found.num_kv_heads, found.mla, formed) == (heads, mla, [heads])


@pytest.mark.parametrize(
    ("mla", "chunks", "count", "kept"),
    [
        (False, True, 1, True),
        (False, False, 1, True),
        (True, True, 1, True),
        (True, False, 1, False),
        (False, True, 2, False),
    ],
)
def test_what_was_pulled_of_a_prompt_is_kept_where_vllm_goes_on_behind_it(
    mla: bool, chunks: bool, count: int, kept: bool
) -> None:
    engine = SimpleNamespace(
        model_config=SimpleNamespace(use_mla=mla), scheduler_config=SimpleNamespace(enable_chunked_prefill=chunks)
    )
    assert keeps_parts(engine, config(*[(name,) for name in "ab"[:count]])) is kept
