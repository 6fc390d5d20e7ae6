"""Puts the simulated machine under the product's code for the time of one history: what would touch the kernel, a
socket, a vendor library or a real clock is replaced where it is looked up."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import coordinator.runtime
import coordinator.store.facts
import coordinator.store.session
import engine_patch.agent
import engine_patch.errands
import engine_patch.pulse
import native.daemon.device
import native.daemon.engines
import native.daemon.masters
import native.daemon.node
from coordinator.store.base import Change, KeyValue
from tests.helpers.whole import coordinator as sim_coordinator
from tests.helpers.whole.daemon import SimClient, SimServer
from tests.helpers.whole.loop import Limit, current
from tests.helpers.whole.machine import BOOT, SimDriver

if TYPE_CHECKING:
    from tests.helpers.whole.world import World


KEEP_ALIVES_PER_TTL = 3
"""Leases of simulated processes last 2 s, not 5: they are renewed about as often a second as in life."""


class _Time:
    """Instead of the module `time`."""

    def __init__(self, world: World) -> None:
        self.monotonic = world.loop.time
        self.time = world.wall


@contextmanager
def staged(world: World) -> Iterator[None]:
    """`world` is all there is."""
    clock = _Time(world)
    changes: list[tuple[Any, str, object]] = [
        (native.daemon.device, "open_driver", partial(_driver, world)),
        (native.daemon.device, "time", clock),
        (native.daemon.masters, "open_driver", partial(_driver, world)),
        (native.daemon.node, "Server", SimServer),
        (native.daemon.node, "boot_id", lambda: BOOT),
        (native.daemon.engines, "reopen", world.machine.reopen),
        (engine_patch.agent, "open_desk", _desk),
        (engine_patch.agent, "Client", partial(_client, world)),
        (engine_patch.agent, "_until_listening", _at_once),
        (engine_patch.pulse, "seconds_since_start", lambda: 1.0),
        (engine_patch.errands, "time", clock),
        (coordinator.runtime, "Admin", sim_coordinator.NoAdmin),
        (coordinator.runtime, "Metrics", sim_coordinator.NoMetrics),
        (coordinator.runtime, "Gateway", partial(sim_coordinator.SimGateway, world=world)),
        (coordinator.store.facts, "of_change", _once(coordinator.store.facts.of_change)),
        (coordinator.store.session, "KEEP_ALIVES_PER_TTL", KEEP_ALIVES_PER_TTL),
        (asyncio, "timeout", Limit),
        (time, "time", world.wall),
    ]
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in changes]
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    for owner, name, value in changes:
        setattr(owner, name, value)
    try:
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)
        logging.disable(disabled)


def _once(read: Callable[[Change], Any]) -> Callable[[Change], Any]:
    """A value is decoded once for all who see it: what is read is immutable, and each has about ten readers."""
    known: dict[int, tuple[KeyValue, Any]] = {}

    def fact(change: Change) -> Any:
        if change.kv is None:
            return read(change)
        found = known.get(id(change.kv))
        if found is None:
            found = known[id(change.kv)] = (change.kv, read(change))
        return found[1]

    return fact


def _driver(world: World, kind: str, index: int = 0, capacity: int = 0, pages: str = "", *, backing: str = "") -> Any:
    daemon = current()
    device = None if kind == "host" else world.machine.devices[f"{daemon.name}/{index}"]
    return SimDriver(world.machine, device, daemon)


def _client(world: World, socket: str, engine: str, nonce: str, role: str) -> SimClient:
    return SimClient(next(each for each in world.lives if (each.id, each.nonce) == (engine, nonce)), role)


@asynccontextmanager
async def _desk(handle: object) -> AsyncIterator[str]:
    yield "desk"


async def _at_once(address: object) -> None:
    pass
