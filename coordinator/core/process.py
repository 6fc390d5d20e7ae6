"""An engine's process, as the leader and whoever keeps it speak of it in etcd: nouns like those of `core.model`.

The same rules hold: bounded types, one JSON value a key, an unknown field is ignored.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import msgspec

from coordinator.core.model import ByteCount, Name, Revision, Seconds, Text, Value


class Wish(StrEnum):
    """What the leader wants of an engine's process. `close`: it takes nothing new, ends what it has, leaves the device;
    then it is told to `stop`."""

    RUN = "run"
    CLOSE = "close"
    STOP = "stop"


class Life(StrEnum):
    """Where an engine's process is, by the word of whoever keeps it. `failed`: given up until it is ordered anew."""

    STOPPED = "stopped"
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    FAILED = "failed"


class Process(Value, frozen=True, kw_only=True):
    """`nodes/<node>/engines/<engine>`, on the lease of the supervisor that keeps the process.

    `bytes` are what the process takes of host memory beside masters, `weights` what the masters of its weights take:
    estimates until `measured`. `lazy`: the leader says when it runs."""

    model: Name
    devices: Annotated[tuple[Name, ...], msgspec.Meta(min_length=1, max_length=64)]
    keeper: Name
    """This run of the supervisor: orders to an earlier one are void."""
    life: Life
    lazy: bool = False
    together: bool = False
    """One of a model's replicas: they are started with each other, as far as host memory has room."""
    bytes: ByteCount = 0
    weights: ByteCount = 0
    measured: bool = False
    stop_after: Seconds | None = None
    obeyed: Revision = 0
    """mod_revision of the newest order that `life` is the answer to."""
    error: Text = ""


class ProcessOrder(Value, frozen=True, kw_only=True):
    """`processes/<engine>`, no lease, written by the leader: what is wanted of the process that `keeper` keeps."""

    keeper: Name
    wish: Wish
    cause: Text = ""
