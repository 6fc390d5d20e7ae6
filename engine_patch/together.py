"""How weights are had from an engine beside this one: mapped while they are copied, or for good, in the same pages.

An engine that starts on the device of one with equal weights need not fetch what lies in device pages: it holds the
other's pages while it is built, and then lies in them (`engine_patch.common_pages`). What is too small for device pages
is fetched as ever.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple

from engine_patch.master import CALL_S
from engine_patch.memory import Hands
from engine_patch.region import layout
from native.link import DaemonError
from transfer.errors import TransferError
from transfer.netloader import ways
from transfer.netloader.identity import Identity
from transfer.netloader.manifest import Manifest
from transfer.netloader.plan import STRIPES, Peer
from transfer.netloader.pull import Dial, offered
from transfer.netloader.ways import Loan, Open
from transfer.transports.deadline import Deadline

log = logging.getLogger("vllm.vnpu.netloader")

ASK_S = 20.0


class Together(NamedTuple):
    """Pages of several engines. `device`: as the node's daemon calls it. `offer(device)`: the digest under which who
    starts there may lie in ours, or nothing. `hold(digest)`: whether theirs are held for us. `let_go()`: not after
    all."""

    device: str
    offer: Callable[[str], str]
    hold: Callable[[str], bool]
    let_go: Callable[[], None]


class SharedStart:
    """`Together` by the memory hands of this process."""

    def __init__(self, hands: Hands) -> None:
        self._hands = hands

    @property
    def together(self) -> Together:
        return Together(self._hands.weights.device, self.offer, self.hold, self.let_go)

    def offer(self, device: str) -> str:
        """As `Together`; from any thread. Weights that nobody looked at since requests ran are looked at first."""
        hands = self._hands
        with hands.staying() as here:
            able = here and device == hands.weights.device and hands.partners.alone and hands.used
            return hands.digest if able and hands.common.offer_now(hands.digest, hands.unchanged) else ""

    def hold(self, digest: str) -> bool:
        """As `Together`: once the model is built and before it has weights."""
        hands = self._hands
        live = hands.live(hands.weights)
        indices = hands.weights.touched(live)
        if digest.rpartition(":")[2] != layout(indices):
            return False
        try:
            needed = [(hands.weights.base + at, size) for at, size in live]
            return hands.common.hold(digest, indices, needed, CALL_S)
        except DaemonError as error:
            log.warning("pages of another engine are not shared: %s", error)
            return False

    def let_go(self) -> None:
        """As `Together`. Raises DaemonUnavailable."""
        self._hands.common.let_go(CALL_S)


class Near(NamedTuple):
    """`machine`: whose daemon owns the pages; `lend`: ours to others, `borrow`: theirs to us; `together`: for good,
    None: never."""

    machine: str
    lend: Callable[[], Loan | None]
    borrow: Open
    together: Together | None = None


def hold(near: Near, identity: Identity, peers: Sequence[Peer], dial: Dial) -> Manifest | None:
    """Of the first whole source on this machine whose pages are held from now on; None: of nobody."""
    beside = [peer for peer in peers if peer.whole and peer.machine == near.machine]
    for peer in sorted(beside, key=lambda peer: (peer.load, peer.ticket, peer.name))[:STRIPES]:
        try:
            if (manifest := _ask(near, identity, peer, dial)) is not None:
                return manifest
        except TransferError as error:
            log.info("%s shares no pages: %s", peer.name, error)
    return None


def _ask(near: Near, identity: Identity, peer: Peer, dial: Dial) -> Manifest | None:
    together = near.together
    if together is None:
        return None
    with dial(peer, Deadline.after(ASK_S)) as channel:
        manifest = offered(channel, identity)
        digest = ways.share(channel, near.machine, together.device)
    if not digest or not together.hold(digest):
        return None
    log.info("the pages of %s are held for this engine: %s", peer.name, digest)
    return manifest


def in_pages(manifest: Manifest) -> list[int]:
    """Numbers of the blocks that lie in device pages."""
    extents = enumerate(manifest.extents)
    return [number for at, extent in extents if extent.offset >= 0 for number in manifest.grid.of_extent(at)]
