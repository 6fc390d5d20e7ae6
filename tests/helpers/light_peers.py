"""Light engines' weights as others stream them: an engine of the test's own that serves them, and a light engine's end.

Which content somebody serves and which one he `claims` to have are two things here.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from coordinator.core.model import Seed
from coordinator.store import keys
from coordinator.store.base import Delete, Put
from coordinator.store.codec import encode
from tests.helpers.light_engine import content_of
from tests.helpers.light_lab import LightLab
from tests.helpers.weights import LOCAL, Directory, Engine, Rank
from tests.helpers.wires import TRUST
from transfer.netloader.identity import Identity
from transfer.netloader.manifest import Extent, layout_digest

log = logging.getLogger("light")

FETCH_S = 30.0
BESIDE = b"norm" * 16
"""A tensor that is too small for device pages."""


def extents(size: int) -> tuple[Extent, ...]:
    return (Extent("weights", size, 0), Extent("norm", len(BESIDE)))


def identity(claims: str, size: int) -> Identity:
    return Identity(model=claims, dtype="uint8", vllm="light", kernels="light", layout=layout_digest(extents(size)))


class LightRank(Rank):
    """Memory with a light engine's weights."""

    def __init__(self, content: str, claims: str, size: int, beside: bytes = BESIDE) -> None:
        self.identity, self.extents = identity(claims, size), extents(size)
        self.held = [bytearray(content_of(content, size)), bytearray(beside)]
        self.addresses = [ctypes.addressof(ctypes.c_char.from_buffer(one)) for one in self.held]


@asynccontextmanager
async def serving(lab: LightLab, rank: LightRank, **more: Any) -> AsyncIterator[Engine]:
    """Somewhere else an engine serves it, and stands in etcd; `more`: of `tests.helpers.weights.Engine`."""
    name, fingerprint = f"elsewhere {rank.identity.model}", rank.identity.fingerprint
    with Engine(name, rank, Directory(), **more) as engine:
        size = sum(extent.length for extent in rank.extents)
        seed = Seed(host=LOCAL, port=engine.peer.port, family=rank.identity.family, total=size, have=size)
        await lab.store.txn([], [Put(keys.seed(name, fingerprint), encode(seed))])
        try:
            yield engine
        finally:
            await lab.store.txn([], [Delete(keys.seed(name, fingerprint))])


class Streams:
    """In a light engine's process, once it has memory: it serves its weights when they are there, and can have them
    back. `beside`: memory is shared on this machine, with who starts too."""

    def __init__(self, hands: Any, birth: Any, claims: str, at: int, size: int, beside: str) -> None:
        from engine_patch.desk import Desk
        from engine_patch.loader_options import Options
        from engine_patch.streaming import Streaming
        from engine_patch.tensors import Table
        from engine_patch.together import Near, SharedStart

        hands.beside = ctypes.create_string_buffer(b"?" * len(BESIDE) if beside == "next" else BESIDE, len(BESIDE))
        self.hands, self._identity = hands, identity(claims, size)
        self._table = Table(extents(size), (at, ctypes.addressof(hands.beside)))
        together = SharedStart(hands).together
        near = Near("this one", hands.lend, hands.borrower.open, together) if beside else None
        self._streaming = Streaming(
            birth.engine, 0, Options(), Desk(birth.desk), TRUST, LOCAL, guard=hands.readers, locate=hands.at, near=near
        )

    def fetch(self) -> None:
        streamed = self._streaming.fetch(self._identity, self._table, FETCH_S)
        log.info("fetched %d of %d blocks", sum(streamed.blocks.values()), streamed.manifest.grid.blocks)
        assert bytes(self.hands.beside) == BESIDE

    def serve(self) -> None:
        from engine_patch.peers import Peers

        self._streaming.serve(self._identity, self._table)
        self.hands.elsewhere = Peers(self._streaming, self._identity, self._table)
