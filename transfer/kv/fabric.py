"""Mooncake's TransferEngine for a rank's whole cache, where configuration chooses it: served to others who have chosen
it too, and read from those. Whoever has not is read over the connection.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated

import msgspec

from transfer.errors import TransferError
from transfer.kv.mooncake import Engine, MooncakeReader, make_engine, serve
from transfer.kv.near import Region
from transfer.kv.reader import Reader, Span

log = logging.getLogger("vllm.vnpu.transfer")


class AskFabric(msgspec.Struct, frozen=True, tag=True):
    """Where does your fabric's engine listen?"""


class Reached(msgspec.Struct, frozen=True, tag=True):
    """`peer`: `host:port`, empty: there is none. The regions' places are addresses in the source's memory, used by the
    fabric alone, which checks them against what is registered there."""

    peer: Annotated[str, msgspec.Meta(max_length=300)] = ""
    regions: Annotated[tuple[Region, ...], msgspec.Meta(max_length=1 << 16)] = ()


class Fabric:
    """Of one rank, `regions` by handle: served as long as it lives, and what is read lands in them."""

    def __init__(
        self, host: str, regions: Mapping[int, Span], make: Callable[[str], Engine] = lambda host: make_engine(host)
    ) -> None:
        """Raises TransferError: Mooncake is not there, or cannot register the memory."""
        self._host, self._make = host, make
        self._spans = union(regions.values())
        self._engine = make(host)
        serve(self._engine, dict(enumerate(self._spans)))
        found = tuple(Region(handle, *span) for handle, span in regions.items())
        self.reached = Reached(f"{host}:{self._engine.get_rpc_port()}", found)

    def peer(self, name: str) -> Peering:
        """To read from one prefill rank; `name`: for the log."""
        return Peering(lambda: self._make(self._host), self._spans, name)


class Peering:
    """One prefill rank, asked once whether it can be read through the fabric. From one thread."""

    def __init__(self, make: Callable[[], Engine], targets: list[Span], name: str) -> None:
        self._make, self._targets, self._name = make, targets, name
        self._asked = False
        self._reader: MooncakeReader | None = None

    def reader(self, ask: Callable[[AskFabric], Reached]) -> Reader | None:
        """None: over the connection. Raises TransferError: it could not be asked."""
        if not self._asked:
            reached = ask(AskFabric())
            self._asked = True
            try:
                self._reader = self._open(reached)
            except TransferError as error:
                log.warning("KV blocks of %s come over TCP: %s", self._name, error)
        return self._reader

    def _open(self, reached: Reached) -> MooncakeReader | None:
        if not reached.peer:
            log.warning("KV blocks of %s come over TCP: it has no fabric", self._name)
            return None
        regions = {region.handle: Span(region.place, region.size) for region in reached.regions}
        made = MooncakeReader(self._make, reached.peer, regions, self._targets)
        log.info("KV blocks of %s come through Mooncake from %s", self._name, reached.peer)
        return made

    def close(self) -> None:
        """Idempotent; nobody may be reading."""
        if self._reader is not None:
            self._reader.close()


def union(spans: Iterable[Span]) -> list[Span]:
    """PURE. Disjoint spans that cover the same bytes: memory is registered once, however layers lie in each other."""
    merged: list[Span] = []
    for span in sorted(spans):
        last = merged[-1] if merged else None
        if last and span.address <= last.address + last.size:
            merged[-1] = Span(last.address, max(last.size, span.address + span.size - last.address))
        else:
            merged.append(span)
    return merged
