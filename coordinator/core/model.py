"""The nouns that vNPU's processes share: what stands in etcd, as bounded msgspec types.

Every struct is one JSON value under `/vnpu/v1/`; `coordinator.store.keys` names the keys and their writers.
Bytes are ints in bytes, times are floats in seconds. Unknown fields are ignored so that a newer writer does not blind
an older reader; a value that lacks a field, or breaks a bound, does not decode and is quarantined.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, NewType

import msgspec

SCHEMA = 1

EngineId = NewType("EngineId", str)
ModelId = NewType("ModelId", str)
DeviceId = NewType("DeviceId", str)
"""`<node>/<device>`, e.g. `local/0`."""

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
Text = Annotated[str, msgspec.Meta(max_length=4096)]
ByteCount = Annotated[int, msgspec.Meta(ge=0, le=1 << 50)]
Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 31)]
Revision = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
Seconds = Annotated[float, msgspec.Meta(ge=0, le=1e9)]
FOREVER = -1.0
UnixTime = Annotated[float, msgspec.Meta(ge=0, le=1e11)]
Pid = Annotated[int, msgspec.Meta(ge=0, le=1 << 31)]


class Phase(StrEnum):
    """An engine's life. `stopped -> starting -> resident -> draining -> offloaded -> restoring -> resident`."""

    STOPPED = "stopped"
    STARTING = "starting"
    RESIDENT = "resident"
    DRAINING = "draining"
    OFFLOADED = "offloaded"
    RESTORING = "restoring"
    FAILED = "failed"
    LOST = "lost"


class Order(StrEnum):
    """What a token permits its holder to do; `reclaim` is addressed to the daemon and stands in seats only. The rest
    are orders to whoever keeps an engine's process (`Wish`): in decisions only."""

    RESTORE = "restore"
    OFFLOAD = "offload"
    RECLAIM = "reclaim"
    RUN = "run"
    CLOSE = "close"
    STOP = "stop"


class Value(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=False):
    """Base of every value in etcd."""

    v: Annotated[int, msgspec.Meta(ge=1, le=SCHEMA)] = SCHEMA


class Bytes(msgspec.Struct, frozen=True, order=True):
    """Bytes by kind. `weights`: clean, a host master exists. `kv`: droppable or saved. `overhead`: what the runtime
    takes and cannot be moved, measured. `cached`: pages that still hold evicted content and can be taken at once."""

    weights: ByteCount = 0
    kv: ByteCount = 0
    overhead: ByteCount = 0
    cached: ByteCount = 0

    @property
    def total(self) -> int:
        return self.weights + self.kv + self.overhead + self.cached


class Holder(msgspec.Struct, frozen=True, order=True):
    """A process that may hold a token: engine id and the nonce of this start of it."""

    engine: Name
    nonce: Name


class Fence(msgspec.Struct, frozen=True, order=True):
    """(epoch, mod_revision of the seat): orders all operations on a device within one life of the store."""

    epoch: Name
    revision: Revision


class Spec(Value, frozen=True, kw_only=True):
    """`engines/<id>/spec`, on the engine's lease: who it is and what it needs. Footprint is per device."""

    holder: Holder
    model: Name
    url: Text
    devices: Annotated[tuple[Name, ...], msgspec.Meta(min_length=1, max_length=64)]
    pid: Pid
    boot_id: Name
    footprint: Bytes
    measured: bool = False
    cold_start: Seconds = 0.0
    """From the start of the API-server process to resident; 0 while that has not happened yet."""
    digest: Text = ""
    """Of the weights' content and layout, as its daemon knows them: one for each of `devices`, with commas between."""
    aliases: Annotated[tuple[Name, ...], msgspec.Meta(max_length=64)] = ()
    capabilities: Annotated[tuple[Name, ...], msgspec.Meta(max_length=64)] = ()
    versions: dict[str, str] = {}

    def digest_on(self, device: str) -> str:
        """Of what it has on this device; empty where that is not known."""
        digests = self.digest.split(",")
        known = len(digests) == len(self.devices) and device in self.devices
        return digests[self.devices.index(device)] if known else ""


class Step(msgspec.Struct, frozen=True):
    """One step of the last operation: its name (`drain`, `enter`, `map`, `copy`, …) and seconds."""

    name: Name
    seconds: Seconds


class Residency(Value, frozen=True, kw_only=True):
    """`engines/<id>/residency`, on the engine's lease. `fence` is the one under which `phase` was reached; `held` are
    the bytes the engine believes it maps (display only: the ledger charges what the daemon publishes)."""

    holder: Holder
    phase: Phase
    fence: Fence | None = None
    held: Bytes = Bytes()
    steps: Annotated[tuple[Step, ...], msgspec.Meta(max_length=32)] = ()
    restored: ByteCount = 0
    d2h: ByteCount = 0
    """Bytes copied out of the device for clean weights by the last offload: 0 while a host master exists."""
    kv_saved: ByteCount = 0
    busy: bool = False
    error: Text = ""

    @property
    def joined(self) -> bool:
        """Its weights lie in another engine's pages: a restore copied saved KV alone."""
        return self.held.kv > 0 and self.held.weights == 0


class Load(Value, frozen=True, kw_only=True):
    """`engines/<id>/load`, on the engine's lease; on change, at most 5 a second, idle -> waiting at once."""

    running: Count = 0
    waiting: Count = 0
    kv_use: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0
    ttft: Seconds = 0.0
    """Of the newest request that was answered: from its arrival at the engine's gate, waking included, to the first
    byte of its answer. 0: none was yet. For display only."""


class Seed(Value, frozen=True, kw_only=True):
    """`engines/<id>/seed/<fingerprint>`, on the engine's lease: where one rank's weights can be streamed from.

    `family` is the fingerprint without the layout, so that a starter can look before it has built its model. `have` of
    `total` bytes are there: an engine that is still loading passes on what it has. `since` orders those that load
    (Unix time of their beginning; only an order, so clocks may differ). `port` 0: it serves nothing just now."""

    host: Name
    port: Annotated[int, msgspec.Meta(ge=0, le=65535)]
    family: Name
    rank: Count = 0
    since: UnixTime = 0.0
    total: ByteCount = 0
    have: ByteCount = 0
    streams: Count = 0
    """Clients connected now."""
    source: Text = ""
    """Where it streams from, while it loads."""
    checkpoint: Text = ""
    """Fingerprint of the checkpoint's own tensors, which it serves too, to engines whose kernels differ."""
    machine: Text = ""
    """Whose daemon lends its memory to starters beside it: node and boot id. Empty: it lends nothing."""
    kin: Text = ""
    """Digest of the model's configuration: whoever has the same and finds no source asks here what differs."""

    @property
    def whole(self) -> bool:
        return self.have >= self.total > 0


class Demand(Value, frozen=True, kw_only=True):
    """`demand/<gateway>/<model>`, on the gateway's lease: requests that wait there, and how long the last of its
    requests that said so wants the model kept (seconds; `FOREVER`: until its memory is needed; None: none has)."""

    waiting: Count
    keep_alive: Annotated[float, msgspec.Meta(ge=-1, le=1e9)] | None = None


class Refusal(Value, frozen=True, kw_only=True):
    """`refusals/<model>`, on the leader's lease: why requests that wait for it at other gateways wait in vain."""

    reason: Text
    retry_after_s: Seconds


class Owner(msgspec.Struct, frozen=True):
    """Who holds pages of a device, as the daemon knows it. `alive` is false once death is proven but pages are not
    back yet."""

    holder: Holder
    bytes: Bytes
    pid: Pid = 0
    alive: bool = True


class Open(msgspec.Struct, frozen=True):
    """The operation that is open on a device."""

    holder: Holder
    revision: Revision
    order: Order


class Shared(msgspec.Struct, frozen=True):
    """Weights of this content lie on the device, charged to their owner: another engine of the same digest maps them
    read-only and is charged nothing for them. `bytes`: whole chunks."""

    digest: Text
    bytes: ByteCount


class Work(msgspec.Struct, frozen=True):
    """What the daemon has done on a device since it started: how often, seconds together, bytes moved."""

    name: Name
    count: Revision
    seconds: Seconds
    bytes: Revision


class HostRam(msgspec.Struct, frozen=True):
    """The node's second budget: host memory that holds masters and saved KV."""

    total: ByteCount = 0
    masters: ByteCount = 0
    saved_kv: ByteCount = 0
    unused: ByteCount = 0
    """Of `masters`, what no process has mapped: it goes as soon as its bytes are needed."""


class Device(Value, frozen=True, kw_only=True):
    """`nodes/<node>/devices/<dev>`, on the daemon's lease, written by the daemon only.

    `closed` is the highest seat revision (in `epoch`) whose operation is over; `owners` are charged, nothing else, and
    are valid exactly when `closed >= seat` (PROTOCOL rules 3 and 4).
    """

    driver: Name
    capacity: ByteCount
    chunk: ByteCount
    epoch: Name
    closed: Revision = 0
    open: Open | None = None
    owners: Annotated[tuple[Owner, ...], msgspec.Meta(max_length=4096)] = ()
    shared: Annotated[tuple[Shared, ...], msgspec.Meta(max_length=4096)] = ()
    work: Annotated[tuple[Work, ...], msgspec.Meta(max_length=32)] = ()
    """As of the last change of anything else here: for metrics, nothing is decided by it."""
    host_ram: HostRam = HostRam()
    free_measured: ByteCount = 0
    cached: ByteCount = 0
    """Of the free bytes, those whose last content somebody may come back to without a copy."""
    drift: ByteCount = 0
    """Bytes that were configured and that somebody else takes, as measured for more than 5 s: overhead that `capacity`
    does not hold any more."""

    @property
    def charged(self) -> int:
        return sum(owner.bytes.total for owner in self.owners)


class Daemon(Value, frozen=True, kw_only=True):
    """`nodes/<node>/daemon`, on the daemon's lease: where engines of this node find it."""

    socket: Text
    boot_id: Name
    pid: Pid
    version: Name


class Token(Value, frozen=True, kw_only=True):
    """`tokens/<node>/<dev>`, on the *holder's* lease, written by the leader: the device's memory token."""

    holder: Holder
    lease: Revision
    order: Order
    bytes: ByteCount
    cause: Text = ""


class Seat(Value, frozen=True, kw_only=True):
    """`seats/<node>/<dev>`, no lease: what was granted last. Its mod_revision is the fence."""

    holder: Holder
    lease: Revision
    order: Order
    bytes: ByteCount
    limit_s: Seconds


class Epoch(Value, frozen=True, kw_only=True):
    """`epoch`, no lease: random id of this store's life, created once."""

    id: Name


class Policy(Value, frozen=True, kw_only=True):
    """`policy/<model>`, written by the admin API; None means: as configured."""

    pin: bool | None = None
    priority: Annotated[int, msgspec.Meta(ge=-1000, le=1000)] | None = None
    keep_alive: Seconds | None = None
    min_residency: Seconds | None = None
    max_wait: Seconds | None = None
    ttft_objective: Seconds | None = None
    drained: bool = False


class Candidate(msgspec.Struct, frozen=True):
    """One engine that a decision looked at: its score (lower goes first) and why, in words."""

    engine: Name
    score: float
    why: Text


class Decision(Value, frozen=True, kw_only=True):
    """`decisions/<n>`, a ring: what was decided, for whom, why, and every candidate's score. `policy`: who scored;
    `shadow`: what the shadow policy would have done instead."""

    n: Count
    at: UnixTime
    """Unix time of the decision, for display only."""
    order: Order
    engine: Name
    devices: tuple[Name, ...]
    cause: Text
    candidates: Annotated[tuple[Candidate, ...], msgspec.Meta(max_length=4096)] = ()
    wanted: Text = ""
    """Model for whose requests it was decided; empty: for nobody's."""
    policy: Text = ""
    shadow: Text = ""


class Coordinator(Value, frozen=True, kw_only=True):
    """`coordinators/<id>`, on its own lease. `reads`: how often it has taken up its configuration file again."""

    id: Name
    admin_url: Text
    gateway_url: Text
    leading: bool = False
    pid: Pid = 0
    reads: Count = 0


class Heartbeat(Value, frozen=True, kw_only=True):
    """`heartbeat`, by the leader once a second: whoever hears nothing for three doubts its watch."""

    n: Count
