"""What the demo does, as data: its models, its prompts and the node's configuration. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

CAPACITY = "2GiB"
MAX_TOKENS = 16
LONG_TOKENS = 160
ROUNDS = 2
SUBJECTS = ("harbour", "orchard", "railway", "glacier", "library", "foundry", "market", "lighthouse")
VERBS = ("opens", "remembers", "measures", "forgets", "repairs", "counts", "answers", "collects")


class DemoModel(msgspec.Struct, frozen=True):
    """One model of the demo: its name, architecture and size as `vnpu make-model` knows them."""

    name: str
    arch: str
    size: str


MODELS = (
    DemoModel("qwen-large", "qwen3", "large"),
    DemoModel("llama-medium", "llama", "medium"),
    DemoModel("qwen2-medium", "qwen2", "medium"),
)
"""1.0, 0.55 and 0.55 GB: any two fit a device of `CAPACITY`, the three do not."""


class Prompt(msgspec.Struct, frozen=True):
    """A chat prompt that the demo sends once, and how many tokens it asks for."""

    model: str
    text: str
    max_tokens: int


def prompt(model: str, number: int, max_tokens: int = MAX_TOKENS) -> Prompt:
    """The `number`-th prompt of a model; no two prompts of a run share their first tokens, so no prefix is cached."""
    subject, verb = SUBJECTS[number % len(SUBJECTS)], VERBS[(number // len(SUBJECTS)) % len(VERBS)]
    return Prompt(
        model, f"{number}: in {model}, the {subject} {verb} what? Answer number {number * 7 + 3}.", max_tokens
    )


class Numbered:
    """Hands out the prompts of each model in order, each once."""

    def __init__(self) -> None:
        self._next: dict[str, int] = {}

    def take(self, model: str) -> Prompt:
        number = self._next.get(model, 0)
        self._next[model] = number + 1
        return prompt(model, number)


def all_prompts() -> Iterator[Prompt]:
    """Every prompt a run may take: the reference answers of stock vLLM are made for these ahead of time."""
    for model in MODELS:
        for number in range(PROMPTS_EACH):
            yield prompt(model.name, number, LONG_TOKENS if number == LONG_NUMBER else MAX_TOKENS)


PROMPTS_EACH = 14
LONG_NUMBER = PROMPTS_EACH - 1
"""The last prompt of each model is the long one, for the request in flight across a switch."""


def long_prompt(model: str) -> Prompt:
    return prompt(model, LONG_NUMBER, LONG_TOKENS)


ENGINE_ARGS = {"dtype": "bfloat16", "max_model_len": 1024, "max_num_seqs": 8, "block_size": 32, "enforce_eager": True}
KV_CACHE_BYTES = 64 << 20


def configuration(models_dir: Path) -> dict[str, object]:
    """The node's `vnpu.yaml` as a plain tree: one host device, three models, ports chosen freely."""
    return {
        "etcd": "embedded",
        "node": "demo",
        "devices": [{"id": 0, "driver": "host", "capacity": CAPACITY}],
        "gateway": {"listen": "127.0.0.1:0"},
        "admin": {"listen": "127.0.0.1:0"},
        "defaults": {"keep_alive": "1h", "min_residency": "1s"},
        "models": {
            model.name: {
                "path": str(models_dir / model.name),
                "device": 0,
                "kv_cache": "64MiB",
                "engine_args": dict(ENGINE_ARGS),
            }
            for model in MODELS
        },
    }
