"""How a request ends when it cannot be served: OpenAI's error shape, 503 with Retry-After where trying again helps."""

from __future__ import annotations

import math
from collections.abc import Iterable

import msgspec

from coordinator.errors import VnpuError


class Problem(VnpuError):
    """Ends a request. `retry_after` in seconds makes it retryable; `code` is for programs, the message for people."""

    def __init__(
        self, status: int, code: str, message: str, *, param: str | None = None, retry_after: float = 0
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param
        self.retry_after = retry_after

    @property
    def headers(self) -> dict[str, str]:
        return {"Retry-After": str(max(1, math.ceil(self.retry_after)))} if self.retry_after else {}

    @property
    def body(self) -> bytes:
        """`{"error": {"message", "type", "param", "code"}}`, as OpenAI's clients read it."""
        kind = "invalid_request_error" if self.status < 500 else "service_unavailable"
        error = {"message": str(self), "type": kind, "param": self.param, "code": self.code}
        return msgspec.json.encode({"error": error})


def bad_request(message: str, param: str | None = None) -> Problem:
    return Problem(400, "invalid_request", message, param=param)


def too_large(limit: int) -> Problem:
    return Problem(413, "request_too_large", f"the request's body is larger than {limit} bytes")


def unknown_model(name: str, known: Iterable[str]) -> Problem:
    names = ", ".join(sorted(known)) or "none"
    return Problem(
        404, "model_not_found", f"the model {name[:256]!r} does not exist; there are: {names}", param="model"
    )


def queue_full(model: str, limit: int) -> Problem:
    message = f"{limit} requests wait for the model {model!r} already"
    return Problem(503, "queue_full", message, retry_after=5)


def unavailable(reason: str, retry_after_s: float) -> Problem:
    return Problem(503, "model_unavailable", reason, retry_after=retry_after_s)


def waited_too_long(model: str, reason: str = "") -> Problem:
    message = f"the model {model!r} did not become available in time" + (f": {reason}" if reason else "")
    return Problem(503, "model_wait_timeout", message, retry_after=5)


def engine_lost(model: str) -> Problem:
    message = f"the engine of the model {model!r} was lost while it worked on this request; nothing was answered"
    return Problem(503, "engine_lost", message, retry_after=1)


def overloaded() -> Problem:
    return Problem(503, "gateway_overloaded", "the gateway holds too many bytes of requests", retry_after=5)


def closing() -> Problem:
    return Problem(503, "gateway_closing", "this gateway is shutting down", retry_after=1)
