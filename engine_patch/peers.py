"""Running engines as the source of a restore: `engine_patch.elsewhere.Elsewhere` over Netloader."""

from __future__ import annotations

import ctypes
import logging
from contextlib import ExitStack

from engine_patch.host_memory import Mapping
from engine_patch.streaming import Streaming
from engine_patch.tensors import Table
from transfer.errors import TransferError
from transfer.netloader.identity import Identity

log = logging.getLogger("vllm.vnpu.memory")


class Peers:
    """Engines with the same fingerprint, found and asked as at a start-up (docs/netloader.md)."""

    def __init__(self, streaming: Streaming, identity: Identity, table: Table) -> None:
        """`identity` and `table`: of the weights that `streaming` serves."""
        self._streaming, self._identity, self._table = streaming, identity, table

    def withdraw(self) -> None:
        self._streaming.offer(served=False)

    def known(self) -> bool:
        return self._streaming.elsewhere(self._identity.fingerprint)

    def fetch(self, limit_s: float) -> int:
        """What lies outside the device's pages never left: it comes beside, and has to be the same."""
        with ExitStack() as stack:
            addresses = list(self._table.addresses)
            beside = [n for n, extent in enumerate(self._table.extents) if extent.offset < 0]
            for n in beside:
                memory = Mapping(self._table.extents[n].length)
                stack.callback(memory.close)
                addresses[n] = memory.address
            streamed = self._streaming.fetch_again(self._identity, addresses, limit_s)
            if not all(self._same(n, addresses[n]) for n in beside):
                raise TransferError("what came is not what was loaded here")
        log.info("%d bytes came in %.2f s from %s", streamed.manifest.size, streamed.seconds, streamed.blocks)
        return streamed.manifest.size

    def serve(self) -> None:
        self._streaming.offer(served=True)

    def _same(self, number: int, address: int) -> bool:
        """Whether this extent's bytes are at `address` as well."""
        length = self._table.extents[number].length
        return ctypes.string_at(self._table.addresses[number], length) == ctypes.string_at(address, length)
