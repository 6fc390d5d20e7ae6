"""What engines say of operations that they have left, until it goes along with the device key (PROTOCOL, *Cost*).

A daemon that put an engine's word before all its devices are left would break rule 5; one that put it on another lease
than the engine's own would let it outlive the engine. Where anything is in doubt nothing is put: the engine looks.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping

from coordinator.core import model
from coordinator.errors import SchemaError
from coordinator.store import keys
from coordinator.store.base import Put
from coordinator.store.codec import decode
from native.daemon.publisher import Beside
from native.daemon.view import Engine
from native.fences import Holder
from native.protocol import Answer

log = logging.getLogger(__name__)


class Answers:
    """The last answer of each holder that is not on its way yet."""

    def __init__(self) -> None:
        self._waiting: dict[Holder, Answer] = {}

    def take(self, holder: Holder, answer: Answer) -> None:
        """What is not this holder's residency is not put for it."""
        try:
            said = decode(model.Residency, answer.residency).holder
        except SchemaError as error:
            log.warning("%s leaves with an answer that does not decode: %s", holder, error)
            return
        if (said.engine, said.nonce) == (holder.engine, holder.nonce):
            self._waiting[holder] = answer

    def ready(self, inside: Collection[Holder], engines: Mapping[str, Engine]) -> tuple[Beside, ...]:
        """Of those that are in no operation (`inside`) any more, once; on the lease that `engines` shows."""
        left = [holder for holder in self._waiting if holder not in inside]
        said = {holder: self._waiting.pop(holder) for holder in left}
        return tuple(
            Beside(Put(keys.residency(holder.engine), answer.residency, engine.lease), answer.above)
            for holder, answer in said.items()
            if (engine := engines.get(holder.engine)) is not None and engine.holder == holder and engine.lease
        )
