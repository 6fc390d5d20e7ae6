"""`vnpu make-model`: a small model with random weights, made offline, the same at every call.

Weights are drawn so that every layer keeps the scale of what goes through it (standard deviation one over the root of
the width) and embeddings are as large as what the layers add: greedy text is nonsense then, but it hardly repeats (60
different tokens in 64), so that equal outputs prove something. With a small constant deviation it ends in one token.
"""

from __future__ import annotations

import shutil
import sysconfig
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn

from coordinator.errors import ConfigError
from coordinator.sizes import show_size
from coordinator.weights import weight_bytes

if TYPE_CHECKING:
    import torch

RECIPE_FILE = "vnpu-model.json"
VOCABULARY = 4096
POSITIONS = 4096
BIAS_DEVIATION = 0.05
_CORPUS = ("os.py", "typing.py", "argparse.py", "asyncio/tasks.py")
_END, _START, _PAD = "<|im_end|>", "<|im_start|>", "<|endoftext|>"
_CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class Shape(msgspec.Struct, frozen=True):
    """Widths of a decoder."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int


SHAPES = {
    "tiny": Shape(128, 384, 4, 4, 2, 32),
    "small": Shape(1024, 3072, 6, 8, 4, 128),
    "medium": Shape(1536, 4608, 10, 12, 4, 128),
    "large": Shape(2048, 6144, 10, 16, 8, 128),
}
CLASSES = {"qwen3": "Qwen3", "llama": "Llama", "qwen2": "Qwen2", "mistral": "Mistral", "deepseek": "DeepseekV2"}
"""Names of transformers' classes, by what a user types."""
LATENT = {"tiny": 512, "small": 1024, "medium": 1536, "large": 4608}
"""Width that DeepSeek's attention (MLA) compresses queries to, by size."""


class Recipe(msgspec.Struct, frozen=True):
    """All that the content of a folder depends on; it lies in the folder, written last."""

    arch: str
    size: str
    seed: int = 0
    version: int = 2


class Made(msgspec.Struct, frozen=True):
    """What `--json` prints."""

    path: str
    recipe: Recipe
    weight_bytes: int
    made: bool


def make_model(out: Path, recipe: Recipe, *, as_json: bool) -> int:
    """Makes the folder, unless it holds this very model. Raises ConfigError where it holds something else."""
    there = _recipe(out)
    if there != recipe:
        _refuse_foreign(out, there)
        _make(out, recipe, Console(stderr=True, quiet=as_json))
    made = Made(str(out), recipe, weight_bytes(out), there != recipe)
    if as_json:
        print(msgspec.json.encode(made).decode())
    else:
        what = "made" if made.made else "already there"
        print(f"{out}: {what}: {recipe.arch}, {show_size(made.weight_bytes)} of weights, seed {recipe.seed}")
    return 0


def _recipe(out: Path) -> Recipe | None:
    try:
        return msgspec.json.decode((out / RECIPE_FILE).read_bytes(), type=Recipe)
    except (FileNotFoundError, NotADirectoryError, msgspec.MsgspecError):
        return None


def _refuse_foreign(out: Path, there: Recipe | None) -> None:
    if there is None and out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ConfigError(f"{out} exists and was not made by vnpu make-model", remedy="name another folder")


def _make(out: Path, recipe: Recipe, console: Console) -> None:
    """In a folder beside it, moved into place at the end: a model is there whole or not at all."""
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        end, pad = _tokenizer(partial)
        _weights(partial, recipe, end, pad, console)
        (partial / RECIPE_FILE).write_bytes(msgspec.json.encode(recipe))
        shutil.rmtree(out, ignore_errors=True)
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _tokenizer(folder: Path) -> tuple[int, int]:
    """Trains and saves a byte-level BPE; returns the ids of end and padding."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[_PAD, _START, _END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    library = Path(sysconfig.get_path("stdlib"))
    bpe.train_from_iterator([(library / name).read_text(encoding="utf-8") for name in _CORPUS], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=_END, pad_token=_PAD)
    tokenizer.chat_template = _CHAT
    tokenizer.save_pretrained(folder)
    return tokenizer.eos_token_id, tokenizer.pad_token_id


def _weights(folder: Path, recipe: Recipe, end: int, pad: int, console: Console) -> None:
    import torch
    import transformers
    from safetensors.torch import save_file

    name = CLASSES[recipe.arch]
    keys = _config(SHAPES[recipe.size], end, pad)
    if recipe.arch == "deepseek":
        keys |= _mla(SHAPES[recipe.size], LATENT[recipe.size])
    config = getattr(transformers, f"{name}Config")(**keys)
    with torch.device("meta"):  # names and shapes only: no memory, no time
        skeleton = getattr(transformers, f"{name}ForCausalLM")(config)
    config.architectures = [f"{name}ForCausalLM"]
    config.save_pretrained(folder)
    shapes = {key: tensor.shape for key, tensor in skeleton.state_dict().items()}
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(
            f"{recipe.arch} {recipe.size}", total=2 * sum(size.numel() for size in shapes.values())
        )
        tensors = {}
        for key, tensor in _draw(shapes, _seed(recipe)):
            tensors[key] = tensor
            progress.advance(task, tensor.nbytes)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)  # safetensors makes it readable for its owner alone


def _config(shape: Shape, end: int, pad: int) -> dict[str, object]:
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "max_position_embeddings": POSITIONS,
        "tie_word_embeddings": False,
        "eos_token_id": end,
        "bos_token_id": None,
        "pad_token_id": pad,
        "dtype": "bfloat16",
    }


def _mla(shape: Shape, latent: int) -> dict[str, object]:
    """What DeepSeek-V2 has instead: compressed queries and KV, the latter as wide as vLLM's CPU kernel wants it
    (512 + 64). All layers are dense."""
    return {
        "intermediate_size": shape.hidden,
        "num_key_value_heads": shape.heads,
        "q_lora_rank": latent,
        "kv_lora_rank": 512,
        "qk_nope_head_dim": 64,
        "qk_rope_head_dim": 64,
        "v_head_dim": 64,
        "head_dim": 64,
        "first_k_dense_replace": shape.layers,
        "moe_intermediate_size": 64,
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
    }


def _seed(recipe: Recipe) -> int:
    """Two models never share a weight: equal architectures would answer alike, and one in the other's place unseen."""
    return zlib.crc32(f"{recipe.arch}/{recipe.size}/{recipe.seed}".encode())


def _draw(shapes: dict[str, torch.Size], seed: int) -> Iterator[tuple[str, torch.Tensor]]:
    """Matrices and biases are drawn, norms are ones. In order of names, so that a seed means one model."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    for key in sorted(shapes):
        if key.endswith("norm.weight"):
            yield key, torch.ones(shapes[key], dtype=torch.bfloat16)
        else:
            drawn = torch.empty(shapes[key]).normal_(std=_deviation(key, shapes[key]), generator=generator)
            yield key, drawn.to(torch.bfloat16)


def _deviation(key: str, shape: torch.Size) -> float:
    if "embed_tokens" in key:
        return 1.0
    return float(shape[1]) ** -0.5 if len(shape) == 2 else BIAS_DEVIATION
