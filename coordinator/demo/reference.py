"""What stock vLLM answers: run as a process of its own, without any of vNPU's plugins switched on.

`python -m coordinator.demo.reference MODEL_DIR PROMPTS.json OUT.json` answers each prompt alone and greedily and
writes the token ids. The demo's engines must give the same ids, however often their memory left the device.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import msgspec

from coordinator.demo.scenario import ENGINE_ARGS, KV_CACHE_BYTES, Prompt


class Reference(msgspec.Struct, frozen=True):
    """Greedy token ids by prompt text; `model` is the digest of the weights that gave them."""

    vllm: str
    model: str
    tokens: dict[str, list[int]]


def digest(model_dir: str) -> str:
    """SHA-256 of the model's weight file."""
    with (Path(model_dir) / "model.safetensors").open("rb") as weights:
        return hashlib.file_digest(weights, "sha256").hexdigest()


def answer(model_dir: str, prompts: list[Prompt]) -> Reference:
    """Load `model_dir` in this process and answer each prompt; one request at a time, as the demo sends them."""
    import vllm

    llm = vllm.LLM(model=model_dir, kv_cache_memory_bytes=KV_CACHE_BYTES, **ENGINE_ARGS)
    tokens: dict[str, list[int]] = {}
    for number, prompt in enumerate(prompts, 1):
        sampling = vllm.SamplingParams(temperature=0.0, max_tokens=prompt.max_tokens, ignore_eos=True)
        [output] = llm.chat([{"role": "user", "content": prompt.text}], sampling, use_tqdm=False)
        tokens[prompt.text] = list(output.outputs[0].token_ids)
        sys.stdout.write(f"answered {number}/{len(prompts)}\n")
        sys.stdout.flush()
    return Reference(vllm=vllm.__version__, model=digest(model_dir), tokens=tokens)


def main() -> None:
    model_dir, prompts_file, out_file = sys.argv[1:4]
    prompts = msgspec.json.decode(Path(prompts_file).read_bytes(), type=list[Prompt])
    Path(out_file).write_bytes(msgspec.json.encode(answer(model_dir, prompts)))


if __name__ == "__main__":
    main()
