"""`python -m coordinator.cli.one_token`: vLLM loads here and generates a token. A process of its own: vLLM's settings
are environment variables that it reads once."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from coordinator.cli.make_model import Recipe, make_model

ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "HF_HUB_OFFLINE": "1",
}


def main() -> int:
    """Exit code 0 if exactly one token came."""
    os.environ.update(ENVIRONMENT)
    for name in ("VNPU_ETCD_ENDPOINTS", "ETCD_ENDPOINTS"):  # a stock engine: ours would wait for its token
        os.environ.pop(name, None)
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", str(min(os.sched_getaffinity(0))))
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        make_model(model, Recipe("qwen3", "tiny"), as_json=True)
        tokens = generate(model)
    print(f"vLLM generated {len(tokens)} token")
    return 0 if len(tokens) == 1 else 1


def generate(model: Path) -> list[int]:
    from vllm import LLM, SamplingParams

    engine = LLM(
        str(model),
        dtype="bfloat16",
        max_model_len=64,
        max_num_seqs=1,
        block_size=32,
        kv_cache_memory_bytes=16 << 20,
        enforce_eager=True,
    )
    [answer] = engine.generate("Hello", SamplingParams(temperature=0, max_tokens=1, ignore_eos=True), use_tqdm=False)
    return list(answer.outputs[0].token_ids)


if __name__ == "__main__":
    sys.exit(main())
