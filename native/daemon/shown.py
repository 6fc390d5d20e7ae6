"""What a device's key in etcd shows of the daemon's own books. PURE."""

from __future__ import annotations

from coordinator.core import model
from native.daemon.device import Device
from native.daemon.engines import Member
from native.fences import Open
from native.pool import Owner
from native.protocol import Kind


def shown_open(opened: Open) -> model.Open:
    holder = model.Holder(opened.holder.engine, opened.holder.nonce)
    return model.Open(holder, opened.revision, model.Order(opened.order))


def shown_owner(device: Device, owner: Owner, member: Member | None) -> model.Owner:
    held = device.pool.bytes_of(owner)
    return model.Owner(
        holder=model.Holder(owner.holder.engine, owner.holder.nonce),
        bytes=model.Bytes(weights=held[Kind.WEIGHTS], kv=held[Kind.KV]),
        pid=member.identity.pid if member is not None else 0,
        alive=member is not None,
    )


def news(old: model.Device | None, new: model.Device | None) -> bool:
    """Whether somebody waits for it: an operation that is over, pages that came back, a device that comes or goes."""
    if old is None or new is None:
        return old is not new
    if (old.epoch, old.closed) != (new.epoch, new.closed):
        return True
    return new.open is None and (old.open, old.owners) != (new.open, new.owners)
