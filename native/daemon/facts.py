"""What the daemon tells people and tests: everything it knows, as one JSON text."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from native.daemon.device import Device
    from native.daemon.node import Node


def facts(node: Node) -> str:
    """See the module; the fields of `Stats` in docs/memory.md."""
    members = [
        {"engine": m.holder.engine, "nonce": m.holder.nonce, "role": m.role, "rank": m.rank, "pid": m.identity.pid}
        | {"mapped": node.measure.held.get(m.number, 0)}
        for m in node.engines
    ]
    told = {
        "node": node.name,
        "version": node.version,
        "generation": node.generation,
        "pid": os.getpid(),
        "view": {"listed": node.view.listed, "revision": node.view.revision, "epoch": node.view.epoch},
        "devices": {name: _device(node, device) for name, device in node.devices.items()},
        "processes": members,
        "masters": node.masters.digests,
        "host_ram": {**msgspec.to_builtins(node.host_ram()), **node.masters.facts()},
        "calls": node.counters.facts(),
        "samples": node.measure.samples,
        "shares": [
            {"device": share.device, "digest": share.digest, "owner": share.owner.process, "chunks": len(share.chunks)}
            | {"sharers": sorted(sharer.process for sharer in share.sharers)}
            for share in node.shares
        ],
        "views": [
            {"id": view.id, "device": view.device, "owner": view.owner, "chunks": len(view.chunks), "to": view.to}
            | {"holders": sorted(view.holders), "revoked": view.revoked}
            for view in node.views
        ],
    }
    return msgspec.json.encode(told).decode()


def _device(node: Node, device: Device) -> Mapping[str, object]:
    pool = device.pool
    return {
        **msgspec.to_builtins(node.state(device)),
        "pool": {"free": pool.free, "charged": pool.charged, "missing": pool.debt, "foreign": pool.foreign}
        | {"blank": pool.blank * pool.chunk},
        "fences": {"agreed": device.fences.agreed, "regressed": device.fences.regressed},
        "drift_now": device.drift(),
        "backing": device.driver.backing,
        "steps": device.counters.facts(),
    }
