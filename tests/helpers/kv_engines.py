"""A prefill engine and a decode engine without vLLM: real caches, real threads, real TCP."""

from __future__ import annotations

import queue
import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import numpy as np

from tests.helpers.kv import Cache, cache, request_bytes
from tests.helpers.kv_peers import LOCAL, shared
from tests.helpers.wires import TRUST
from transfer.kv.desk import Desk
from transfer.kv.layout import unit_tokens
from transfer.kv.messages import Terms
from transfer.kv.plan import heads_of
from transfer.kv.puller import Blocks, Peer, Puller
from transfer.kv.reader import Span
from transfer.kv.sink import Finished, Wanted
from transfer.kv.source import Released, Source
from transfer.kv.tcp import SERVICE, KvServer, TcpReader
from transfer.transports.deadline import Deadline
from transfer.transports.dial import dial
from transfer.transports.listener import Listener

TERMS = Terms(first_s=20.0, lease_s=4.0, beat_s=0.05, patience_s=2.0, limit_s=30.0)
LAYERS, POOL = 3, 16


@dataclass
class Rank:
    """Its cache: `memory[layer]` is writable here, `spans[layer]` what is read or written by the product."""

    side: Cache
    heads: range
    memory: list[np.ndarray]  # type: ignore[type-arg]
    spans: list[Span]


@dataclass
class PrefillRank(Rank):
    desk: Desk
    listener: Listener
    released: queue.SimpleQueue[Released] = field(default_factory=queue.SimpleQueue)


@dataclass
class DecodeRank(Rank):
    puller: Puller
    finished: queue.SimpleQueue[Finished] = field(default_factory=queue.SimpleQueue)


class Engines:
    """`prefill_tp` → `decode_tp`; `kinds` and `block_tokens` of the two sides, in this order."""

    def __init__(
        self, stack: ExitStack, sizes: tuple[int, int, int], kinds: tuple[str, str], block_tokens: tuple[int, int]
    ) -> None:
        self.prefill_tp, self.decode_tp, self.heads = sizes
        self.mla = kinds[0] == "latent"
        self.block_tokens = block_tokens
        self.epoch = secrets.token_hex(16)
        self.noise = np.random.default_rng(1)
        self.prefill = [self._prefill(stack, rank, kinds[0]) for rank in range(self.prefill_tp)]
        self.decode = [self._decode(stack, rank, kinds[1]) for rank in range(self.decode_tp)]

    def _memory(self, stack: ExitStack, tp: int, rank: int, kind: str, tokens: int) -> Rank:
        heads = heads_of(tp, self.heads, rank)
        side = cache(kind, POOL, tokens, len(heads), 64)
        made = Rank(side, heads, [], [])
        for _ in range(LAYERS):
            _, memory = stack.enter_context(shared(side.layout.extent))
            made.memory.append(np.frombuffer(memory, dtype=np.uint8)[: side.layout.extent])
            made.spans.append(Span(made.memory[-1].ctypes.data, side.layout.extent))
            stack.callback(made.memory.clear)
        return made

    def _prefill(self, stack: ExitStack, rank: int, kind: str) -> PrefillRank:
        made = self._memory(stack, self.prefill_tp, rank, kind, self.block_tokens[0])
        released: queue.SimpleQueue[Released] = queue.SimpleQueue()
        source = Source(self.epoch, self.prefill_tp, rank, self.heads, mla=self.mla, terms=TERMS)
        desk = stack.enter_context(Desk(source, released.put))
        server = KvServer(dict(enumerate(made.spans)), desk.answer)
        listener = stack.enter_context(Listener(LOCAL, 0, TRUST, SERVICE, server.serve))
        return PrefillRank(made.side, made.heads, made.memory, made.spans, desk, listener, released)

    def _decode(self, stack: ExitStack, rank: int, kind: str) -> DecodeRank:
        made = self._memory(stack, self.decode_tp, rank, kind, self.block_tokens[1])
        finished: queue.SimpleQueue[Finished] = queue.SimpleQueue()
        peers = {number: self._peer(each) for number, each in enumerate(self.prefill)}
        puller = stack.enter_context(Puller(made.side.layout, made.spans, peers, finished.put, TERMS))
        return DecodeRank(made.side, made.heads, made.memory, made.spans, puller, finished)

    @staticmethod
    def _peer(rank: PrefillRank) -> Peer:
        def connect(deadline: Deadline):  # type: ignore[no-untyped-def]
            return dial(LOCAL, rank.listener.port, TRUST, SERVICE, deadline)

        words = TcpReader(connect)
        handles = {layer: layer for layer in range(LAYERS)}
        readers = [TcpReader(connect) for _ in range(TERMS.lanes)]
        return Peer(rank.side.layout, handles, readers, words.ask, words.close)

    # ---- what an engine does

    def fill(self, tokens: int, blocks: list[int]) -> tuple[str, np.ndarray]:  # type: ignore[type-arg]
        """Prefill a request into `blocks` and offer it on every rank; its id and [layer, plane, token, head, byte]."""
        some = request_bytes(self.prefill[0].side, blocks, 10**6)
        shape = (LAYERS, some.shape[0], some.shape[1], self.heads, some.shape[3])
        content = self.noise.integers(0, 256, shape, dtype=np.uint8)
        request = secrets.token_hex(16)
        for rank in self.prefill:
            at = request_bytes(rank.side, blocks, 10**6)
            for layer in range(LAYERS):
                rank.memory[layer][at] = content[layer][:, :, list(rank.heads)]
            rank.desk.offer(request, blocks)
        return request, content

    def wanted(self, request: str, tokens: int, rank: int) -> Wanted:
        src, dst = self.prefill[0].side.layout, self.decode[0].side.layout
        unit = unit_tokens(src, dst)
        slots = 1 if dst.packed else unit
        return Wanted(
            request=request,
            epoch=self.epoch,
            prefill_tp=self.prefill_tp,
            decode_tp=self.decode_tp,
            decode_rank=rank,
            num_kv_heads=self.heads,
            units=-(-tokens // unit),
            cell_bytes=(len(dst.planes) * slots * dst.slot_bytes,) * LAYERS,
            stages=((0, LAYERS),),
            src_block_units=self.block_tokens[0] // unit,
            dst_block_units=self.block_tokens[1] // unit,
            mla=self.mla,
        )

    def pull(self, request: str, tokens: int, src: list[int], dst: list[int]) -> None:
        for number, rank in enumerate(self.decode):
            rank.puller.pull(self.wanted(request, tokens, number), Blocks(src, dst))

    def holds(self, rank: DecodeRank, content: np.ndarray, tokens: int, dst: list[int]) -> bool:  # type: ignore[type-arg]
        """Whether a decode rank has the request's bytes, token by token (a packed block is one)."""
        count = -(-tokens // self.block_tokens[1]) if rank.side.layout.packed else tokens
        at = request_bytes(rank.side, dst, 10**6)[:, :count]
        return all(
            np.array_equal(rank.memory[layer][at], content[layer][:, :count][:, :, list(rank.heads)])
            for layer in range(LAYERS)
        )


@contextmanager
def engines(
    sizes: tuple[int, int, int], kinds: tuple[str, str], block_tokens: tuple[int, int] = (8, 8)
) -> Iterator[Engines]:
    with ExitStack() as stack:
        yield Engines(stack, sizes, kinds, block_tokens)
