"""The ticket that a prefill engine writes for a request, and that the gateway carries to a decode engine unread.

It says what was prefilled, where each prefill rank is reached and how its cache lies. It is sealed with the key that
both engines share, so no client can forge one: a decode engine connects to what its own kind has named, and to nothing
else. It is bound to its prompt: a decode engine uses it for that prompt only.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from array import array
from collections.abc import Sequence
from typing import Annotated

import msgspec

from transfer.errors import NotTrusted, PeerViolation
from transfer.kv.layout import KvLayout
from transfer.kv.messages import Count, Identity, Size
from transfer.transports.trust import Trust

LABEL = b"vnpu kv ticket"
MAC = 32
Digest = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]


class Door(msgspec.Struct, frozen=True):
    """A prefill rank: where it listens, the life it is in, and the layout of a layer of each KV group."""

    host: Annotated[str, msgspec.Meta(min_length=1, max_length=255)]
    port: Annotated[int, msgspec.Meta(ge=1, le=65535)]
    epoch: Identity
    layouts: Annotated[tuple[KvLayout, ...], msgspec.Meta(min_length=1, max_length=64)]


class Part(msgspec.Struct, frozen=True):
    """What is offered of one KV group: its own id, and block ids in request order, the same on each rank. Block 0 is
    the engine's null block: nothing is there (outside of a sliding window)."""

    request: Identity
    blocks: Annotated[tuple[Count, ...], msgspec.Meta(max_length=1 << 20)]


class Ticket(msgspec.Struct, frozen=True):
    """`doors`: the prefill ranks in order; `form`: what both engines must agree on beside tensor-parallel sizes (model,
    types, layers, block size, how a block is packed); `prompt`: digest of what was prefilled, `tokens` long."""

    form: Digest
    prompt: Digest
    tokens: Count
    num_kv_heads: Size
    mla: bool
    doors: Annotated[tuple[Door, ...], msgspec.Meta(min_length=1, max_length=4096)]
    parts: Annotated[tuple[Part, ...], msgspec.Meta(min_length=1, max_length=64)]


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Ticket).decode


def seal(ticket: Ticket, trust: Trust) -> str:
    """As text that may stand in JSON."""
    body = _encode(ticket)
    return base64.urlsafe_b64encode(trust.mac(LABEL, body) + body).decode()


def unseal(text: str, trust: Trust) -> Ticket:
    """Raises NotTrusted where it was not sealed with this key, PeerViolation where it is none."""
    try:
        data = base64.urlsafe_b64decode(text.encode("ascii"))
    except (binascii.Error, ValueError) as error:
        raise PeerViolation(f"a KV ticket that is none: {error}") from error
    if not trust.is_mac(data[:MAC], LABEL, data[MAC:]):
        raise NotTrusted("a KV ticket that was sealed with another key", remedy="give both engines one transfer key")
    try:
        return _decode(data[MAC:])
    except ValueError as error:
        raise PeerViolation(f"a KV ticket that is none: {error}", remedy="run one vNPU on both sides") from error


def prompt_digest(tokens: Sequence[int], others: Sequence[str] = ()) -> str:
    """`others`: what else the KV cache of the prompt depends on, such as the digests of its images, in order."""
    digest = hashlib.sha256(array("q", tokens).tobytes())
    for other in others:
        digest.update(len(other).to_bytes(8, "big") + other.encode())
    return digest.hexdigest()
