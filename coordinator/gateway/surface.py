"""What is passed on to engines: the inference routes of vLLM 0.32's API server, and how a stream of each ends.

A list, not a pattern: an engine's server also has routes that steer it (its memory, its weights, its profiler), and
those that come with a later vLLM must not be open before somebody has looked at them. Left out on purpose are
`/inference/v1/generate` and `/derender`, which engines ask of each other, `/invocations`, which is all routes at once,
and `/v1/responses/{id}`, which only the engine that gave the id could answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

COMPLETIONS: Final = ("/v1/chat/completions", "/v1/completions")
"""Where a prefill engine can take the first part."""
JSON_PATHS: Final = (
    *COMPLETIONS,
    "/v1/chat/completions/batch",
    "/v1/responses",
    "/v1/messages",
    "/cohere/v2/chat",
    "/v1/systemone",
    "/v1/embeddings",
    "/v2/embed",
    "/pooling",
    "/classify",
    "/v1/score",
    "/score",
    "/v1/rerank",
    "/v2/rerank",
    "/rerank",
    "/generative_scoring",
    "/tokenize",
    "/detokenize",
    "/v1/messages/count_tokens",
    "/v1/chat/completions/render",
    "/v1/completions/render",
    "/v1/messages/render",
    "/v1/responses/render",
    "/cohere/v2/chat/render",
)
"""The model is the field `model` of a JSON object."""
FORM_PATHS: Final = ("/v1/audio/transcriptions", "/v1/audio/translations")
"""The model is the field `model` of a multipart form."""
PATHS: Final = frozenset((*JSON_PATHS, *FORM_PATHS))

NAMED_ENDS: Final[Mapping[str, frozenset[bytes]]] = {
    "/v1/responses": frozenset((b"response.completed", b"response.incomplete", b"response.failed")),
    "/v1/messages": frozenset((b"message_stop",)),
}
"""Paths whose streams end in an event of such a name; all others end in `data: [DONE]`."""


def named_ends(path: str) -> frozenset[bytes]:
    """Names of the events that end a stream of `path`; none: `data: [DONE]` ends it."""
    return NAMED_ENDS.get(path, frozenset())
