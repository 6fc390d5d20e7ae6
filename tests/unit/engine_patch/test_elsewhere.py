"""When weights that came from elsewhere are believed to be one's own."""

from __future__ import annotations

import pytest

from engine_patch.elsewhere import Nowhere, bring_back
from engine_patch.restoring import MemoryFault
from transfer.errors import TransferError


class Somewhere(Nowhere):
    def __init__(self, fault: str = "") -> None:
        self.fault = fault

    def fetch(self, limit_s: float) -> int:
        if self.fault:
            raise TransferError(self.fault)
        return 1


def test_what_was_sealed_is_believed() -> None:
    bring_back(Somewhere(), "content:layout", lambda: "content")


@pytest.mark.parametrize("found", ["conten", "content:layout", "other", ""])
def test_nothing_else_is(found: str) -> None:
    with pytest.raises(MemoryFault, match="other weights"):
        bring_back(Somewhere(), "content:layout", lambda: found)


def test_who_gets_nothing_is_told_why() -> None:
    for nobody, why in ((Nowhere(), "not streamed here"), (Somewhere("gone"), "gone")):
        with pytest.raises(MemoryFault, match=why):
            bring_back(nobody, "content:layout", lambda: "content")
