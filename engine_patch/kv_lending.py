"""The KV cache of one rank, lent to other engines of the node: a view of its pages, for as long as they are here."""

from __future__ import annotations

import logging
import threading

from engine_patch import settings
from engine_patch.family import boot_id
from engine_patch.lent_view import LentView
from engine_patch.memory import Hands
from native.link import DaemonError
from transfer.kv.near import Near
from transfer.netloader.ways import Loan
from transfer.netloader.wire import Lent

log = logging.getLogger("vllm.vnpu.transfer")


class KvLending:
    """Thread-safe. The daemon revokes a view when pages of it are given back; after that `lend` makes another."""

    def __init__(self, hands: Hands) -> None:
        self._hands = hands
        self._turn = threading.Lock()
        self._view = LentView(hands.client, hands.kv)

    def lend(self, lost: int) -> Loan | None:
        """A view of all of it, but not the view `lost`, which the daemon does not know any more. None: nothing now."""
        region = self._hands.kv
        with self._turn, self._hands.staying() as here:
            if not here or not region.chunks:
                return None
            try:
                return Loan(Lent(self._view.now(lost)), region.place)
            except DaemonError as error:
                log.warning("the KV cache is not lent: %s", error)
                return None


def near(hands: Hands) -> Near:
    """How this rank shares KV with others of its node."""
    return Near(f"{settings.required().node} {boot_id()}", KvLending(hands).lend, hands.borrower.open)
