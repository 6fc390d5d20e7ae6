"""Who fetches from whom: pure, and the same for everybody who sees the same directory.

Starters stand in one order (`Peer.ticket`). Each may fetch from whole sources and from starters *before* it, which
pass on what they have; so there is never a circle, whatever anybody sees when. Each endpoint can send about as fast as
it can receive; so the first starter takes a share of every whole source, and who finds nothing idle queues behind the
last starter: a chain, in which N take little longer than one. A whole source on the same machine comes before all
that: its memory is mapped, which takes nothing of what it sends to others.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

STRIPES = 4
"""Sources that one client reads from at once at most."""


class Peer(msgspec.Struct, frozen=True, kw_only=True):
    """An engine that serves, or will. `ticket` orders starters; `whole`: it has everything. `load`: how busy it is with
    requests, only for choosing among equals. `machine`: whose daemon lends its memory; empty: nobody's."""

    name: str
    host: str
    port: int
    ticket: tuple[float, str] = (0.0, "")
    whole: bool = True
    load: int = 0
    machine: str = ""


def sources(me: Peer, peers: Sequence[Peer], avoid: frozenset[str] = frozenset()) -> list[Peer]:
    """Where `me` should fetch from now, best first, at most `STRIPES` of them. `avoid`: names that failed. Empty:
    there is nobody.

    Everybody's choice is worked out in the order of tickets, `me` last.
    """
    able = [peer for peer in peers if peer.name != me.name]
    if near := _near(me, able, avoid):
        return near
    use = {peer.name: 0.0 for peer in able}
    starters = sorted((p for p in able if not p.whole and p.ticket < me.ticket), key=lambda p: p.ticket)
    whole = [peer for peer in able if peer.whole]
    for n, starter in enumerate(starters):
        if _near(starter, able):
            continue
        _take(_choose(whole + starters[:n], use), use)
    return _choose([peer for peer in whole + starters if peer.name not in avoid], use)


def spares(me: Peer, peers: Sequence[Peer], avoid: frozenset[str]) -> list[Peer]:
    """Everybody whom `me` may ask, if nobody of `sources` is left: whole ones first."""
    able = [p for p in peers if p.name != me.name and p.name not in avoid and (p.whole or p.ticket < me.ticket)]
    return sorted(able, key=lambda p: (not p.whole, p.load, p.ticket, p.name))


def _near(who: Peer, able: Sequence[Peer], avoid: frozenset[str] = frozenset()) -> list[Peer]:
    """The whole source on its own machine that has least to do, if there is one."""
    near = [p for p in able if p.whole and who.machine and p.machine == who.machine and p.name not in avoid]
    return sorted(near, key=lambda p: (p.load, p.ticket, p.name))[:1]


def _choose(able: Sequence[Peer], use: dict[str, float]) -> list[Peer]:
    """The least used. Of whole sources all that are used as little, striped; a starter stands alone, for what it has
    not got yet its own source would have to send twice."""
    ranked = sorted(able, key=lambda p: (use[p.name], not p.whole, p.load, p.ticket, p.name))
    if not ranked or not ranked[0].whole:
        return ranked[:1]
    least = use[ranked[0].name]
    return [peer for peer in ranked if peer.whole and use[peer.name] == least][:STRIPES]


def _take(chosen: Sequence[Peer], use: dict[str, float]) -> None:
    for peer in chosen:
        use[peer.name] += 1 / len(chosen)
