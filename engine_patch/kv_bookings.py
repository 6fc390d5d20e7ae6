"""The scheduler's side of KV transfers: what is asked for, what is granted, and what the ranks are told to do.

Knows vLLM's requests only by a few values, so that all of it can be tested without an engine. A prefill engine is asked
with `kv_transfer_params = {"vnpu": "offer"}` and answers with a ticket in the same place; a decode engine is given that
answer. A ticket is used once and for its own prompt; what cannot be used is said in the log, and the engine computes.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from transfer.errors import TransferError
from transfer.kv.orders import Offer, Order, Orders, Places, let_go
from transfer.kv.station import Results
from transfer.kv.ticket import Door, Part, Ticket, prompt_digest, seal, unseal
from transfer.transports.trust import Trust

log = logging.getLogger("vllm.vnpu.transfer")

PARAM = "vnpu"
"""Our key in `kv_transfer_params`."""
OFFER = "offer"
"""Its value where a prefill engine shall offer the prompt's KV cache."""


class Asked(NamedTuple):
    """What is needed of a request. `others`: what its KV depends on beside tokens (identifiers of images)."""

    name: str
    prompt: Sequence[int] | None
    others: tuple[str, ...]
    params: Mapping[str, object] | None


class Shape(NamedTuple):
    """The engine: its `form` (see `Ticket`), tokens a block for each KV group, KV heads of the whole model, and its
    blocks."""

    form: str
    block_tokens: tuple[int, ...]
    num_kv_heads: int
    mla: bool
    blocks: int


class Bookings:
    """One engine's. `doors` are set when the ranks have said where they listen."""

    def __init__(self, shape: Shape, trust: Trust, mint: Callable[[], str] = lambda: secrets.token_hex(16)) -> None:
        self._shape = shape
        self._trust = trust
        self._mint = mint
        self.doors: tuple[Door, ...] = ()
        self._tickets: dict[str, Ticket | None] = {}
        self._tried: set[str] = set()
        self._pulling: set[str] = set()
        self._offered: dict[str, frozenset[int]] = {}
        self._offers: list[Offer] = []
        self._pulls: list[Order] = []
        self._aborted: list[str] = []
        self._freed: set[int] = set()

    # ---- a decode engine

    def matched(self, asked: Asked, computed: int) -> int:
        """Tokens beyond the `computed` first that can be pulled. Changes nothing but what is remembered of a ticket."""
        if asked.name in self._tried:
            return 0
        ticket = self._ticket(asked)
        return max(0, ticket.tokens - computed) if ticket is not None else 0

    def allocated(self, asked: Asked, external: int, blocks: Sequence[Sequence[int]]) -> None:
        """The request has got `blocks` (ids by group); the last `external` of its prompt's tokens are to be pulled."""
        ticket = self._tickets.get(asked.name)
        if ticket is None or asked.name in self._tried:
            return
        self._tried.add(asked.name)
        if not external:
            self._pulls.append(let_go(ticket))
            return
        skipped = ticket.tokens - external
        wanted = tuple(
            _wanted(part, skipped // size, ids)
            for part, size, ids in zip(ticket.parts, self._shape.block_tokens, blocks, strict=True)
        )
        self.given(block for places in wanted for block in places.blocks)
        self._pulling.add(asked.name)
        self._pulls.append(Order(asked.name, ticket, wanted))

    def received(self, names: Iterable[str]) -> None:
        """These pulls have ended, well or not."""
        self._pulling.difference_update(names)

    def _ticket(self, asked: Asked) -> Ticket | None:
        if asked.name not in self._tickets:
            self._tickets[asked.name] = self._read(asked)
        return self._tickets[asked.name]

    def _read(self, asked: Asked) -> Ticket | None:
        text = (asked.params or {}).get(PARAM)
        if not isinstance(text, str) or text == OFFER:
            return None
        try:
            ticket = unseal(text, self._trust)
        except TransferError as error:
            log.warning("kv pull of %s: it is computed here: %s", asked.name, error)
            return None
        if why := self._refusal(ticket, asked):
            log.warning("kv pull of %s: it is computed here: %s", asked.name, why)
            if len(ticket.parts) == len(self._shape.block_tokens):
                self._pulls.append(let_go(ticket))
            return None
        return ticket

    def _refusal(self, ticket: Ticket, asked: Asked) -> str:
        if ticket.form != self._shape.form or len(ticket.parts) != len(self._shape.block_tokens):
            return (
                "the prefill engine's cache has another form: model, types, --block-size and the processors' vector "
                "instructions must be the same on both sides"
            )
        if asked.prompt is None or ticket.prompt != prompt_digest(asked.prompt, asked.others):
            return "the ticket is for another prompt"
        sizes = zip(ticket.parts, self._shape.block_tokens, strict=True)
        if len(asked.prompt) != ticket.tokens or any(len(part.blocks) * size < ticket.tokens for part, size in sizes):
            return "the ticket does not hold the whole prompt"
        return ""

    # ---- a prefill engine

    def finished(
        self, asked: Asked, *, whole: bool, blocks: Sequence[Sequence[int]]
    ) -> tuple[bool, dict[str, object] | None]:
        """The request has ended; `whole`: its prompt was computed to the end and `blocks` hold it. Whether its blocks
        must be kept until they are sent, and what the response carries."""
        self._forget(asked)
        if not whole or asked.prompt is None or (asked.params or {}).get(PARAM) != OFFER:
            return False, None
        held = frozenset(block for ids in blocks for block in ids if block)
        if not self.doors or sum(map(len, self._offered.values())) + len(held) > self._shape.blocks // 2:
            log.info("%s is not offered: half of the KV cache waits to be pulled already", asked.name)
            return False, None
        parts = tuple(Part(self._mint(), tuple(ids)) for ids in blocks)
        self._offered[asked.name] = held
        self._offers.append(Offer(asked.name, parts))
        digest = prompt_digest(asked.prompt, asked.others)
        shape = self._shape
        ticket = Ticket(shape.form, digest, len(asked.prompt), shape.num_kv_heads, shape.mla, self.doors, parts)
        return True, {PARAM: seal(ticket, self._trust)}

    def given(self, blocks: Iterable[int]) -> None:
        """Blocks that are about to be written by somebody. One that is offered must not be among them; where it is all
        the same, whoever reads it hears that it was freed early, and computes."""
        if early := {block for offered in self._offered.values() for block in offered}.intersection(blocks):
            log.error("blocks %s were freed while they are offered: their readers will be told", sorted(early)[:20])
            self._freed |= early

    def sent(self, names: Iterable[str]) -> None:
        """These offers have ended: the blocks are the engine's again."""
        for name in names:
            self._offered.pop(name, None)

    def _forget(self, asked: Asked) -> None:
        """A request that ends: its pull is aborted, and a ticket that it never used is let go of."""
        if asked.name in self._pulling:
            self._aborted.append(asked.name)
        elif asked.name not in self._tried and (ticket := self._ticket(asked)) is not None:
            self._pulls.append(let_go(ticket))
        self._tickets.pop(asked.name, None)
        self._tried.discard(asked.name)

    # ---- both

    @property
    def pending(self) -> bool:
        """Blocks are held that will come back."""
        return bool(self._offered)

    def orders(self) -> Orders:
        """What the ranks are to do since it was last asked."""
        made = Orders(tuple(self._offers), tuple(self._pulls), tuple(self._aborted), tuple(sorted(self._freed)))
        self._offers, self._pulls, self._aborted, self._freed = [], [], [], set()
        return made


def losses(found: Results, *, by_block: bool) -> tuple[set[int], set[str]]:
    """What vLLM is told of blocks that did not come: their ids, so that what came is kept, or the requests' own, which
    are computed from their start then, whichever block they lack."""
    return ({missing.block for missing in found.blocks}, set()) if by_block else (set(), found.failed)


def _wanted(part: Part, skipped: int, ids: Sequence[int]) -> Places:
    """From block `skipped` of the prompt on; the null block is nobody's destination."""
    pairs = [(at, ids[at]) for at in range(skipped, min(len(part.blocks), len(ids))) if ids[at]]
    return Places(tuple(at for at, _ in pairs), tuple(block for _, block in pairs))
