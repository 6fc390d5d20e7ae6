"""Why an engine was not asked, in words that say what to do."""

from __future__ import annotations

import errno
import time
from typing import cast

import pytest

from coordinator.core.commands import Endpoint
from coordinator.core.model import EngineId
from coordinator.gateway.call import Call
from coordinator.gateway.forward import Forwarder, NotTaken
from coordinator.gateway.reply import Reply
from coordinator.hosts import Peers
from coordinator.http1.upstream import Pool, Upstream

CALL = Call("m", "/v1/completions", b"{}", {}, 10.0, 0.0, "client", "engine")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.EMFILE, "too many"), "limit of open files"),
        (OSError(errno.ENFILE, "too many"), "limit of open files"),
        (ConnectionRefusedError(errno.ECONNREFUSED, "refused"), "the engine e does not accept connections"),
        (TimeoutError(), "the engine e does not accept connections"),
    ],
)
async def test_no_connection(monkeypatch: pytest.MonkeyPatch, error: Exception, words: str) -> None:
    async def take(self: Pool, address: tuple[str, int], timeout_s: float) -> Upstream:
        raise error

    monkeypatch.setattr(Pool, "take", take)
    forwarder = Forwarder(Peers(), time.monotonic, 5.0, lambda model, seconds: None)
    with pytest.raises(NotTaken, match=words):
        await forwarder.attempt(CALL, Endpoint(EngineId("e"), "http://127.0.0.1:9"), cast(Reply, None))
    await forwarder.close()
