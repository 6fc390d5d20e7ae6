"""Weights that no memory of this node holds any more, and a running engine does: where a restore takes them from when
there is neither a page nor a host master left, before disk (docs/memory.md, "Host masters").
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from engine_patch.restoring import MemoryFault
from transfer.errors import TransferError

FETCH_S = 40.0
"""Longest that weights may take to come from another engine: under the operation's own limit."""
_REMEDY = (
    "the engine ends and reads them from disk at its next start; raise --host-ram so that they need not be dropped"
)


class Elsewhere(Protocol):
    """Of one rank's weights. Calls come from the worker's one thread."""

    def withdraw(self) -> None:
        """Nobody may count on this engine's weights from now on."""
        ...

    def known(self) -> bool:
        """After `withdraw`: whether another engine that runs has them, whole."""
        ...

    def fetch(self, limit_s: float) -> int:
        """Bring them to where they belong, from such an engine; returns bytes. Raises TransferError: the pages hold
        nothing of use then, and nobody writes to them any more."""
        ...

    def serve(self) -> None:
        """They are here again: others may have them."""
        ...


class Nowhere:
    """Of weights that cannot be streamed."""

    def withdraw(self) -> None:
        """Nobody does."""

    def known(self) -> bool:
        return False

    def fetch(self, limit_s: float) -> int:
        raise TransferError("weights are not streamed here")

    def serve(self) -> None:
        """Nothing to do."""


def bring_back(elsewhere: Elsewhere, digest: str, content: Callable[[], str]) -> None:
    """All weights, compared with what was sealed under `digest`; `content()`: of what came. Raises MemoryFault: nobody
    gives them, or somebody others."""
    try:
        elsewhere.fetch(FETCH_S)
    except TransferError as error:
        raise MemoryFault(f"the weights were dropped, and nobody gives them back: {error}", remedy=_REMEDY) from error
    if not digest.startswith(f"{content()}:"):
        raise MemoryFault("another engine gave other weights than were sealed here", remedy=_REMEDY)
