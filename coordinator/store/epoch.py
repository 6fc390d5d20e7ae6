"""The random id of this store's life (PROTOCOL rule 13): when etcd's data is lost its revisions begin again, and its
cluster id does not change, so only this key tells."""

from __future__ import annotations

import secrets
from collections.abc import Callable

from coordinator.core.model import Epoch
from coordinator.errors import Ambiguous
from coordinator.store import keys
from coordinator.store.base import CreateRevision, Put, Store
from coordinator.store.codec import decode, encode


def random_id() -> str:
    return secrets.token_hex(16)


async def ensure_epoch(store: Store, new_id: Callable[[], str] = random_id) -> Epoch:
    """The epoch that stands in etcd, created where there is none: of many who try, one wins and all see its id.

    Raises `SchemaError` when what stands there is no epoch: nobody may grant then, and an operator has to look.
    """
    while True:
        standing = await store.get(keys.EPOCH)
        if standing:
            return decode(Epoch, standing.value)
        mine = Epoch(id=new_id())
        try:
            if (await store.txn([CreateRevision(keys.EPOCH, 0)], [Put(keys.EPOCH, encode(mine))])).succeeded:
                return mine
        except Ambiguous:
            continue
