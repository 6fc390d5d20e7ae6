"""What remains of an engine's weights in pages that it has left: nothing of that is copied when it comes back before
anybody needs them (docs/memory.md, "What the last owner left")."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Set

from engine_patch.pieces import Pieces

log = logging.getLogger("vllm.vnpu.memory")


class LeftBehind:
    """Of one engine's sealed weights. Not thread-safe."""

    def __init__(self, pieces: Pieces) -> None:
        self._pieces = pieces
        self._constant = True
        self.name = ""
        """By which the daemon finds the chunks; empty: they hold nothing that could be used."""

    def leave(self, *, whole: bool) -> str:
        """The weights leave: their new name, which nobody else can guess; none where they are not `whole`, because
        their restore had not ended."""
        self.name = secrets.token_hex(16) if self._constant and whole else ""
        return self.name

    def forget(self) -> None:
        """They leave in the middle of a restore, or came another way."""
        self.name = ""

    def confirm(self, still: Set[int]) -> Set[int]:
        """Of the chunks that are said to hold what was left there, those that need no copy: all, or none where a sample
        differs. Then something writes to these weights, which a copy makes good: so they are copied from now on."""
        if still and not self._pieces.same(still):
            log.warning("something writes to the weights: they are copied at each restore")
            self._constant = False
            return frozenset()
        return still
