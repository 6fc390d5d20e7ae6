"""The second budget: what a node's host memory holds, and what it would hold if a process were started or stopped.

Counted are masters that somebody has mapped, saved KV, and the processes of engines that are started lazily; those
that run whatever is decided are not. A process that has not loaded its weights yet is charged for their master too.
Bytes are bytes.
"""

from __future__ import annotations

from coordinator.core.entries import EngineEntry
from coordinator.core.ledger import Ledger
from coordinator.core.model import DeviceId, HostRam, Phase
from coordinator.core.process import Life
from coordinator.core.processes import ProcessEntry
from coordinator.core.starts import Starts

_LOADED = frozenset({Phase.RESIDENT, Phase.DRAINING, Phase.OFFLOADED, Phase.RESTORING})


def total(ledger: Ledger, node: str) -> int:
    """The node's budget; 0: none."""
    return ledger.processes.ram.get(node, HostRam()).total


def taken(ledger: Ledger, starts: Starts, node: str) -> int:
    """What is charged now: also for what was ordered and is not there yet."""
    ram = ledger.processes.ram.get(node, HostRam())
    held = max(0, ram.masters - ram.unused) + ram.saved_kv
    return held + sum(charge(ledger, starts, entry) for entry in ledger.processes.on(node))


def charge(ledger: Ledger, starts: Starts, entry: ProcessEntry) -> int:
    """What one process takes beside masters that are there."""
    if entry.process is None or not entry.lazy or (entry.down and not starts.running(entry.id)):
        return 0
    return entry.process.bytes + (0 if loaded(ledger, entry) else entry.process.weights)


def need(entry: ProcessEntry) -> int:
    """What starting it takes."""
    return entry.process.bytes + entry.process.weights if entry.process is not None else 0


def freed(ledger: Ledger, entry: ProcessEntry) -> int:
    """What its end gives back: its master too, where nobody else on the node has the same content."""
    if entry.process is None:
        return 0
    alone = not any(_same_weights(ledger, entry, other) for other in ledger.engines.values())
    return entry.process.bytes + (entry.process.weights if alone else 0)


def loaded(ledger: Ledger, entry: ProcessEntry) -> bool:
    """Whether its weights are in a master, which the daemon counts."""
    if entry.process is not None and entry.process.life in (Life.RUNNING, Life.STOPPING):
        return True
    engine = ledger.engines.get(entry.id)
    return engine is not None and engine.phase in _LOADED


def name(node: str) -> DeviceId:
    """A node's host memory where a device's id is expected."""
    return DeviceId(f"{node} (host memory)")


def _same_weights(ledger: Ledger, entry: ProcessEntry, other: EngineEntry) -> bool:
    engine = ledger.engines.get(entry.id)
    if engine is None or engine.spec is None or not engine.spec.digest or other.spec is None or other.id == entry.id:
        return False
    here = any(device.rpartition("/")[0] == entry.node for device in other.devices)
    return here and other.spec.digest == engine.spec.digest
