"""`policy/<model>`: what operators override. Any coordinator writes it; the leader's watch sees it."""

from __future__ import annotations

import logging
from collections.abc import Callable

import msgspec

from coordinator.core.model import Policy, Seconds
from coordinator.errors import Ambiguous, SchemaError
from coordinator.gateway.problem import Problem, bad_request
from coordinator.store import keys
from coordinator.store.base import KeyValue, ModRevision, Put, Store
from coordinator.store.codec import decode, encode

log = logging.getLogger(__name__)

ATTEMPTS = 5


class Patch(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What to change of a policy. Null: as configured. Left out: as it stands. Durations in seconds."""

    pin: bool | msgspec.UnsetType | None = msgspec.UNSET
    priority: int | msgspec.UnsetType | None = msgspec.UNSET
    keep_alive: Seconds | msgspec.UnsetType | None = msgspec.UNSET
    min_residency: Seconds | msgspec.UnsetType | None = msgspec.UNSET
    max_wait: Seconds | msgspec.UnsetType | None = msgspec.UNSET
    ttft_objective: Seconds | msgspec.UnsetType | None = msgspec.UNSET
    drained: bool | msgspec.UnsetType = msgspec.UNSET

    def apply(self, policy: Policy) -> Policy:
        """Raises Problem (400) when the result breaks a bound."""
        changes = {name: getattr(self, name) for name in self.__struct_fields__}
        set_ = {name: value for name, value in changes.items() if value is not msgspec.UNSET}
        try:
            return msgspec.convert(msgspec.to_builtins(policy) | set_, Policy)
        except msgspec.ValidationError as error:
            raise bad_request(str(error)) from None


def parse(body: bytes) -> Patch:
    """Raises Problem (400) naming what does not fit."""
    try:
        return msgspec.json.decode(body, type=Patch)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        fields = ", ".join(Patch.__struct_fields__)
        raise bad_request(f"not a policy: {error}; its fields are {fields}") from None


async def update(store: Store, model: str, change: Callable[[Policy], Policy]) -> Policy:
    """Change `policy/<model>` by compare and set. Raises Problem (409) when others change it all the time, and what
    the store raises."""
    key = keys.policy(model)
    for _ in range(ATTEMPTS):
        found = await store.get(key)
        wanted = change(_policy(found))
        put = Put(key, encode(wanted))
        try:
            result = await store.txn([ModRevision(key, found.mod_revision if found else 0)], [put])
        except Ambiguous:
            if _policy(await store.get(key)) == wanted:
                return wanted
            raise
        if result.succeeded:
            log.info("policy of %s: %s", model, encode(wanted).decode())
            return wanted
    raise Problem(409, "conflict", f"the policy of {model!r} is being changed by somebody else; try again")


def _policy(found: KeyValue | None) -> Policy:
    """What stands; what does not decode is obeyed by nobody and therefore replaced."""
    if found is None:
        return Policy()
    try:
        return decode(Policy, found.value)
    except SchemaError:
        log.warning("%s does not decode: replaced", found.key)
        return Policy()
