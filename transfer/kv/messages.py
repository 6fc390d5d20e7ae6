"""What a decode rank and a prefill rank say to each other. MessagePack, bounded.

Every message of the decode side may be sent again at any time: the prefill side answers the same. Whatever does not
decode is `msgspec.ValidationError` or `msgspec.DecodeError`, both `ValueError`.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

Identity = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{32}$")]
"""A request or the life of a process: 128 random bits that we draw ourselves, never the client's id."""
Rank = Annotated[int, msgspec.Meta(ge=0, lt=4096)]
Size = Annotated[int, msgspec.Meta(ge=1, le=4096)]
Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 20)]
Reason = Annotated[str, msgspec.Meta(max_length=300)]


class _Say(msgspec.Struct, frozen=True, tag=True):
    """From decode rank `reader` (`stage * decode_tp + rank`), about `request` of the prefill engine's life `epoch`."""

    request: Identity
    epoch: Identity
    reader: Rank


class Shape(msgspec.Struct, frozen=True):
    """What a prefill rank needs to know whom it waits for: the plan (`plan_pull`) follows from it."""

    decode_tp: Size
    decode_pp: Size
    units: Count


class Open(_Say, frozen=True):
    """I shall read, or am still reading: keep the blocks."""

    shape: Shape


class Confirm(_Say, frozen=True):
    """All my reads have ended: were the blocks what they were, up to now?"""


class Done(_Say, frozen=True):
    """I read no more; `ok`: I have what I wanted. Said until it is answered, also after a failure, also by whoever has
    nothing to read but speaks for a rank that nobody reads (`closers`)."""

    shape: Shape
    ok: bool


class _Answer(msgspec.Struct, frozen=True, tag=True):
    """To decode rank `reader`, about `request`."""

    request: Identity
    reader: Rank


class Opened(_Answer, frozen=True):
    """The blocks are kept for another lease."""


class Confirmed(_Answer, frozen=True):
    """The blocks were kept since they were offered, except those at the places `stale` of the ticket's list."""

    stale: Annotated[tuple[Count, ...], msgspec.Meta(max_length=1 << 20)]


class Closed(_Answer, frozen=True):
    """*Done* was heard."""


class NotYet(_Answer, frozen=True):
    """Never heard of it: this rank may learn later than the decode side that it is offered. Ask again."""


class Refused(_Answer, frozen=True):
    """Nothing may be read, and nothing that was read may be used."""

    reason: Reason


Say = Open | Confirm | Done
Answer = Opened | Confirmed | Closed | NotYet | Refused

encode = msgspec.msgpack.Encoder().encode
_say: msgspec.msgpack.Decoder[Say] = msgspec.msgpack.Decoder(Say)
_answer: msgspec.msgpack.Decoder[Answer] = msgspec.msgpack.Decoder(Answer)


def decode_say(data: bytes) -> Say:
    """Raises ValueError where it is none."""
    return _say.decode(data)


def decode_answer(data: bytes) -> Answer:
    """Raises ValueError where it is none."""
    return _answer.decode(data)


class Terms(msgspec.Struct, frozen=True):
    """Times in seconds, the same on both sides.

    `patience_s` must be shorter than `lease_s`, and several beats long: then a decode rank gives up a silent prefill
    rank before that rank frees the blocks of a decode rank which it merely cannot hear.
    """

    first_s: float = 60.0
    """How long an offer waits for its first reader: the decode engine may have a queue."""
    lease_s: float = 15.0
    """How long it is kept after that without a word from any of its readers."""
    beat_s: float = 1.0
    """How often a reader says something."""
    patience_s: float = 6.0
    """How long a reader waits for an answer."""
    limit_s: float = 120.0
    """How long a pull may take in all."""
    window: int = 3
    """Layers that are ordered of one prefill rank at once: one more than `lanes`, so that none waits for an order."""
    lanes: int = 2
    """Layers that come from one prefill rank at once, each over a connection of its own, so that placing one hides
    behind reading the next."""

    def __post_init__(self) -> None:
        if not 0 < self.beat_s < self.patience_s < self.lease_s:
            raise ValueError("Terms: beat_s must be shorter than patience_s, and that shorter than lease_s")
        if self.window < 1 or self.lanes < 1:
            raise ValueError("Terms: window and lanes must be at least 1")
