"""Shares: weights that several engines of the same content have mapped in the same pages, read-only, charged once. PURE
book-keeping.

The owner of the pages is charged, as ever, and the others are *sharers*. When the owner unmaps, or is proven dead, its
pages go to a sharer, which is charged from then on; they are free when the last of them has unmapped or is dead. So a
page has one owner at any time, and no page is anybody else's while somebody who had a right to it may have it mapped.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from native.journal import KeptShare
from native.pool import Owner, Pool


class NoShare(Exception):
    """Nobody offers this content on this device."""


class OnlyPart(Exception):
    """A share is given back whole."""


@dataclass(eq=False, slots=True)
class Share:
    """`chunks` of `owner` hold the content of `digest`, in this order. `former`: numbers of processes that had it and
    have unmapped it, so that a repeated call of theirs is no news."""

    device: str
    digest: str
    owner: Owner
    chunks: tuple[int, ...]
    sharers: set[Owner] = field(default_factory=set)
    former: set[int] = field(default_factory=set)

    @property
    def kept(self) -> KeptShare:
        return KeptShare(self.digest, self.owner, self.chunks, tuple(sorted(self.sharers)), tuple(sorted(self.former)))


class Shares:
    """All shares of the node: one for each content and device."""

    def __init__(self) -> None:
        self._shares: dict[tuple[str, str], Share] = {}

    def __iter__(self) -> Iterator[Share]:
        return iter(tuple(self._shares.values()))

    def on(self, device: str) -> tuple[Share, ...]:
        return tuple(share for share in self if share.device == device)

    def get(self, device: str, digest: str) -> Share | None:
        return self._shares.get((device, digest))

    def of(self, owner: Owner) -> tuple[Share, ...]:
        return tuple(share for share in self if share.owner == owner)

    def offer(self, device: str, digest: str, owner: Owner, chunks: Iterable[int]) -> None:
        """Where that content is offered already, the first offer stands."""
        self._shares.setdefault((device, digest), Share(device, digest, owner, tuple(chunks)))

    def open(self, device: str, digest: str, process: Owner) -> Share:
        """From now on `process` may have it mapped. Raises NoShare: there is none, or it is its own."""
        share = self._shares.get((device, digest))
        if share is None or share.owner == process:
            raise NoShare(f"nobody else on {device} offers {digest}")
        share.sharers.add(process)
        share.former.discard(process.process)
        return share

    def close(self, share: Share, process: Owner) -> None:
        """A sharer has unmapped it. Idempotent."""
        share.sharers.discard(process)

    def whole(self, device: str, owner: Owner, chunks: Collection[int]) -> tuple[Share, ...]:
        """The owner's shares that `chunks` are of. Raises OnlyPart: not all chunks of one are among them."""
        named = set(chunks)
        mine = tuple(share for share in self.on(device) if share.owner == owner and not named.isdisjoint(share.chunks))
        if any(not named.issuperset(share.chunks) for share in mine):
            raise OnlyPart("these are a part of a content that was offered: unmap all its chunks in one call")
        return mine

    def unmapped(self, device: str, pool: Pool, owner: Owner, chunks: Iterable[int]) -> tuple[int, ...]:
        """The owner has unmapped these chunks: what others share goes to one of them. Returns the others, in their
        order, which are to be given back.

        Raises:
            OnlyPart: some chunks of a share, and not all; nothing has changed.
        """
        named = tuple(chunks)
        rest = set(named)
        mine = self.whole(device, owner, rest)
        for share in self.on(device):
            if owner.process in share.former:
                rest -= set(share.chunks)
        for share in mine:
            if self._pass_on(share, pool):
                rest -= set(share.chunks)
        return tuple(chunk for chunk in named if chunk in rest)

    def forget(self, process: int, pools: Mapping[str, Pool]) -> None:
        """The process is dead: it has nothing mapped, and what it owned goes to who shares it."""
        for share in self:
            share.sharers = {sharer for sharer in share.sharers if sharer.process != process}
            share.former.discard(process)
            if share.owner.process == process:
                self._pass_on(share, pools[share.device])

    def rights(self, device: str) -> dict[int, frozenset[int]]:
        """By chunk of the device: processes that share it."""
        return {c: frozenset(o.process for o in share.sharers) for share in self.on(device) for c in share.chunks}

    def kept(self, device: str) -> tuple[KeptShare, ...]:
        """What is to be persisted."""
        return tuple(share.kept for share in self.on(device))

    def recall(self, device: str, kept: Iterable[KeptShare], alive: Collection[int]) -> None:
        """Shares of an earlier life of the daemon, where anybody who had them lives. `forget` a dead owner when its
        pages stand in the pool."""
        for one in kept:
            sharers = {sharer for sharer in one.sharers if sharer.process in alive}
            if sharers or one.owner.process in alive:
                former = set(one.former) & set(alive)
                self._shares[device, one.digest] = Share(device, one.digest, one.owner, one.chunks, sharers, former)

    def _pass_on(self, share: Share, pool: Pool) -> bool:
        """To a sharer; False: there is none, the share is over."""
        if not share.sharers:
            del self._shares[share.device, share.digest]
            return False
        before, share.owner = share.owner, min(share.sharers)
        share.sharers.remove(share.owner)
        share.former.add(before.process)
        pool.bequeath(before, share.owner, share.chunks)
        return True
