"""What a client sent: read within bounds, and rewritten so that it steers nothing but the model.

Only the top level is parsed; everything below stays as the client's bytes. The body is written anew in any case: two
parsers that disagree about a repeated key can then not be played against each other.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterable, Mapping
from typing import Final

import msgspec

from coordinator.gateway import keep
from coordinator.gateway.problem import bad_request, overloaded, too_large

KV_PARAMS: Final = "kv_transfer_params"
OURS: Final = (KV_PARAMS, "ec_transfer_params")
"""Steer transfers of KV and of encoder outputs between engines (CVE-2026-94622 ff.): ours to set, never a client's."""
MAX_N: Final = 128
"""OpenAI's own bound of `n`; engines allocate for each."""

_ABOUT_PROMPT: Final = ("echo", "prompt_logprobs", "use_beam_search")
_OFF: Final = (b"null", b"false")
_ANSWER: Final = frozenset(
    ("stream", "stream_options", "max_tokens", "max_completion_tokens", "min_tokens", "n", "best_of", "logprobs",
     "top_logprobs", "response_format", "guided_json", "structured_outputs", "stop", "stop_token_ids", "ignore_eos")
)  # fmt: skip
_ALONE: Final = {"stream": False, "ignore_eos": True}
"""Of the answer, not of the prompt: a prefill engine is asked for one token whatever it is."""

_decode = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_name = msgspec.json.Decoder(str).decode
_decode_count = msgspec.json.Decoder(int | None).decode


class Budget:
    """Bytes of request bodies that a process holds at once."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.held = 0

    def take(self, count: int) -> None:
        """Raises Problem (503) when `count` bytes more would exceed the limit."""
        if self.held + count > self._limit:
            raise overloaded()
        self.held += count

    def give_back(self, count: int) -> None:
        self.held -= count


class Body:
    """One request's bytes, charged to a budget until `release`."""

    def __init__(self, budget: Budget, limit: int) -> None:
        self._budget = budget
        self._limit = limit
        self._size = 0

    async def read(self, chunks: AsyncIterable[bytes]) -> bytes:
        """All of `chunks`. Raises Problem: 413 beyond the limit, 503 beyond the budget; nothing is read beyond it."""
        return b"".join([self.charge(chunk) async for chunk in chunks])

    def charge(self, chunk: bytes) -> bytes:
        """The same bytes. Raises as `read`."""
        if self._size + len(chunk) > self._limit:
            raise too_large(self._limit)
        self._budget.take(len(chunk))
        self._size += len(chunk)
        return chunk

    def release(self) -> None:
        self._budget.give_back(self._size)
        self._size = 0


class Ask(msgspec.Struct, frozen=True):
    """A parsed body: the model it names, its fields as raw JSON, and how long it wants the model kept (`keep.read`)."""

    model: str
    fields: dict[str, msgspec.Raw]
    keep_alive: float | None = None

    @property
    def streams(self) -> bool:
        """The client wants a stream of events."""
        return bytes(self.fields.get("stream", b"null")) == b"true"

    @property
    def content_type(self) -> str:
        return "application/json"

    def encode(self, model: str, transfer: Mapping[str, object] | None = None) -> bytes:
        """The body for an engine, which serves `model` under this name. `transfer`: our kv_transfer_params."""
        fields: dict[str, object] = {**self.fields, "model": model}
        if transfer is not None:
            fields[KV_PARAMS] = transfer
        return msgspec.json.encode(fields)

    def first_token(self, model: str, transfer: Mapping[str, object]) -> bytes | None:
        """The body for a prefill engine: the same prompt, one token, whole. None: requests of this kind are not split
        (several answers or prompts, or what must be told about the prompt itself)."""
        if not self._splits():
            return None
        kept = {name: raw for name, raw in self.fields.items() if name not in _ANSWER}
        one = {"max_completion_tokens": 1} if "messages" in kept else {}
        return msgspec.json.encode({**kept, "model": model, "max_tokens": 1, **one, **_ALONE, KV_PARAMS: transfer})

    def _splits(self) -> bool:
        single = all(bytes(self.fields.get(name, b"1")) in (b"1", b"null") for name in ("n", "best_of"))
        plain = all(bytes(self.fields.get(name, b"null")) in _OFF for name in _ABOUT_PROMPT)
        prompt = bytes(self.fields.get("prompt", b'"')).lstrip()
        return single and plain and not re.match(rb"\[\s*[\[\"]", prompt)


def parse(data: bytes) -> Ask:
    """Raises Problem (400): no JSON object, no model name, an impossible `n` or `keep_alive`."""
    fields = _fields(data)
    model = _name(fields)
    _check_n(fields)
    keep_alive = keep.read(fields.pop(keep.FIELD, None))
    for name in OURS:
        fields.pop(name, None)
    if "vllm_xargs" in fields:
        # vLLM reads extra arguments and transfer parameters from one dict.
        fields["vllm_xargs"] = _without_ours(fields["vllm_xargs"])
    return Ask(model, fields, keep_alive)


def _fields(data: bytes) -> dict[str, msgspec.Raw]:
    try:
        return _decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise bad_request("the body is not a JSON object") from None


def _name(fields: dict[str, msgspec.Raw]) -> str:
    if "model" not in fields:
        raise bad_request("the body names no model", "model")
    try:
        return _decode_name(fields["model"])
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise bad_request("`model` is not a string", "model") from None


def _check_n(fields: dict[str, msgspec.Raw]) -> None:
    if "n" not in fields:
        return
    try:
        n = _decode_count(fields["n"])
    except msgspec.DecodeError:
        raise bad_request("`n` is not a whole number", "n") from None
    if n is not None and not 1 <= n <= MAX_N:
        raise bad_request(f"`n` must be between 1 and {MAX_N}", "n")


def _without_ours(raw: msgspec.Raw) -> msgspec.Raw:
    try:
        extra = _decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return raw  # null, or what the engine will refuse
    for name in OURS:
        extra.pop(name, None)
    return msgspec.Raw(msgspec.json.encode(extra))
