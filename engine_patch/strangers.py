"""Engines of the same model that are no source, because they run another revision, type, vLLM or layout: one or two of
them are asked what differs, so that a mismatch has a name also where etcd shows digests alone.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from engine_patch.desk import Desk
from engine_patch.seeds import Found
from transfer.errors import TransferError
from transfer.netloader import wire
from transfer.netloader.identity import Identity
from transfer.netloader.plan import Peer
from transfer.netloader.wire import Ask, Code, Refused
from transfer.transports.deadline import Deadline
from transfer.transports.dial import dial
from transfer.transports.trust import Trust

log = logging.getLogger("vllm.vnpu.netloader")

ASKED = 2
"""So many engines: the reason is for people to read."""
LIMIT_S = 5.0
"""For all of them; disk is waiting."""
LINES, LENGTH = 16, 400
"""Of one engine's answer, and characters of a line; it has a line for each field."""


def as_peer(one: Found) -> Peer:
    """As who fetches sees it."""
    return Peer(
        name=f"{one.engine} at {one.seed.host}:{one.seed.port}",
        host=one.seed.host,
        port=one.seed.port,
        ticket=(one.seed.since, one.engine),
        whole=one.seed.whole,
        load=one.load,
        machine=one.seed.machine,
    )


def relatives(desk: Desk, engine: str, rank: int, identity: Identity, checkpoint: str) -> list[Found]:
    """Others that serve this rank of the same model, nearest first: of the same family, of the same checkpoint
    (`checkpoint`: its fingerprint), of the same configuration. Raises TransferError where the agent does not answer."""
    nearest = (desk.find(family=identity.family), desk.find(checkpoint=checkpoint), desk.find(kin=identity.kin))
    found: dict[tuple[str, str], Found] = {}
    for group in nearest:
        for one in sorted(group, key=lambda one: (not one.seed.whole, one.load, one.engine)):
            if one.engine != engine and one.seed.port and one.seed.rank == rank:
                found.setdefault((one.engine, one.fingerprint), one)
    return list(found.values())


def mismatches(found: Sequence[Found], identity: Identity, trust: Trust) -> list[str]:
    """What differs, field by field, as the first `ASKED` of `found` say. Who says nothing in time is left out.
    "Here" is the engine that says it."""
    deadline = Deadline.after(LIMIT_S)
    said = []
    for one in found[:ASKED]:
        peer = as_peer(one)
        try:
            lines = _asked(peer, identity, trust, deadline)
        except TransferError as error:
            log.info("%s does not say what differs: %s", peer.name, error)
            continue
        if lines:
            said.append(f"{peer.name} says: {', '.join(lines)}")
    return said


def _asked(peer: Peer, identity: Identity, trust: Trust, deadline: Deadline) -> list[str]:
    with dial(peer.host, peer.port, trust, wire.SERVICE, deadline) as channel:
        channel.send(wire.encode(Ask(identity)), deadline)
        _, body = channel.receive(deadline)
    answer = wire.decode_answer(body)
    if not isinstance(answer, Refused) or answer.code is not Code.MISMATCH:
        return []
    # A layout is known only once the model is built: until then each would differ.
    told = [line for line in answer.details if identity.layout or not line.startswith("layout: ")]
    return [line[:LENGTH] for line in told[:LINES]]
