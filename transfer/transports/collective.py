"""`torch.distributed` point to point between two processes: gloo for tensors of the host, NCCL and HCCL for a device's.
Only gloo was ever run.

The group is of these two alone and of nobody else's making: it stands beside whatever groups the process has and is in
no registry, so that making it, breaking it and dropping it touch nothing of vLLM's. The two meet over the channel that
has proved them to each other, not at a port of its own.
"""

from __future__ import annotations

import contextlib
import ctypes
import queue
import sys
import threading
from collections.abc import Callable, Sequence
from datetime import timedelta
from enum import IntEnum
from typing import Annotated, Any, NamedTuple

import msgspec
import torch
from torch import distributed as dist

from native import _native
from transfer.errors import PeerLost, PeerViolation, TransferError
from transfer.transports.carrier import Piece
from transfer.transports.channel import Channel
from transfer.transports.deadline import Deadline

BACKENDS = {"cpu": "gloo", "cuda": "nccl", "npu": "hccl"}
"""By torch's name of the kind of device that tensors lie on."""
OPERATION_S = 60.0
"""The group's own limit for what has no deadline of ours."""
MARGIN_S = 5.0
"""A backend ends its operation so much later than it was told at most."""
KEYS = 256
"""A group of two sets a handful."""
_PROBE = 8


class Put(msgspec.Struct, frozen=True, tag=True):
    """One side's word to the other while they meet."""

    key: Annotated[str, msgspec.Meta(max_length=256)]
    value: Annotated[bytes, msgspec.Meta(max_length=65536)]


class Joined(msgspec.Struct, frozen=True, tag=True):
    """The group stands at this side, and a byte has gone through it."""


class Failed(msgspec.Struct, frozen=True, tag=True):
    """It does not, and why."""

    why: Annotated[str, msgspec.Meta(max_length=1024)]


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Put | Joined | Failed).decode


class Side(IntEnum):
    """Ranks of the two."""

    SOURCE = 0
    STARTER = 1


class Meeting(dist.Store):  # type: ignore[misc]  # torch has no types for it
    """What a group needs to be made, over a channel: each side tells the other what it sets."""

    def __init__(self, channel: Channel, deadline: Deadline) -> None:
        super().__init__()
        self._channel = channel
        self._deadline = deadline
        self._known: dict[str, bytes] = {}
        self._joined = False

    def set(self, key: str, value: bytes | str) -> None:
        data = value.encode() if isinstance(value, str) else bytes(value)
        self._known[key] = data
        self._channel.send(_encode(Put(key, data)), self._deadline)

    def get(self, key: str) -> bytes:
        self.wait([key])
        return self._known[key]

    def wait(self, keys: Sequence[str], timeout: timedelta | None = None) -> None:
        while not all(key in self._known for key in keys):
            self._hear()

    def check(self, keys: Sequence[str]) -> bool:
        return all(key in self._known for key in keys)

    def delete_key(self, key: str) -> bool:
        return self._known.pop(key, None) is not None

    def joined(self) -> None:
        """Tell, and wait until the other side tells the same. Raises TransferError."""
        self._channel.send(_encode(Joined()), self._deadline)
        while not self._joined:
            self._hear()

    def failed(self, why: str) -> None:
        with contextlib.suppress(TransferError):
            self._channel.send(_encode(Failed(why[:1024])), self._deadline)

    def _hear(self) -> None:
        _, body = self._channel.receive(self._deadline)
        try:
            said = _decode(body)
        except msgspec.MsgspecError as error:
            raise PeerViolation(f"not what is said while two processes meet: {error}") from error
        match said:
            case Put(key, value):
                if len(self._known) >= KEYS:
                    raise PeerViolation(f"more than {KEYS} keys while two processes meet")
                self._known[key] = value
            case Joined():
                self._joined = True
            case Failed(why):
                raise TransferError(f"the peer could not join: {why}", remedy="see its log, or use TRANSPORT: tcp")


class _Job(NamedTuple):
    begin: Callable[[torch.Tensor], Any]
    length: int
    seconds: float


class Pair:
    """Two processes that are joined; a `Giver` on the source's side, a `Taker` on the starter's. A place is the number
    of the hand-over, so that both sides stay in step.

    A backend's operation cannot be broken off from this side, and touches its memory until it ends. So a thread of the
    pair waits for it, and the memory is a stage of the pair's own: `abort` frees the caller at once, whose memory may
    go then; the thread drops the group when the operation has run into its limit.
    """

    quiet = False
    parallel = False

    def __init__(self, group: Any, side: Side, device: str = "cpu") -> None:
        """Takes the group over. `device`: where the backend wants its tensors."""
        self._group = group
        self._other = int(1 - side)
        self._device = device
        self._stage = torch.empty(0, dtype=torch.uint8)
        self._number = 0
        self._changed = threading.Condition()
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._answered = 0
        self._asked = 0
        self._error: str | None = None
        self._broken = False
        self._thread = threading.Thread(target=self._work, name="vnpu-pair", daemon=True)
        self._thread.start()

    def place(self, address: int, length: int) -> int | None:
        """As `Giver.place`."""
        return self._number if length else None

    def push(self, address: int, length: int, deadline: Deadline) -> None:
        """As `Giver.push`."""
        self._number += 1
        self._check()
        ctypes.memmove(self._staged(length), address, length)
        self._do(lambda tensor: self._group.send([tensor], self._other, 0), length, deadline)

    def take(self, place: int, address: int, length: int, deadline: Deadline) -> int:
        """As `Taker.take`."""
        self._check()
        if place != self._number:
            raise PeerViolation(f"hand-over {place} where {self._number} was due")
        self._number += 1
        staged = self._staged(length)
        self._do(lambda tensor: self._group.recv([tensor], self._other, 0), length, deadline)
        return _native.checked_copy(address, staged, length)

    def take_all(self, pieces: Sequence[Piece], deadline: Deadline) -> int:
        """As `Taker.take_all`."""
        for number, piece in enumerate(pieces):
            if self.take(piece.place, piece.address, piece.length, deadline) != piece.sum:
                return number
        return len(pieces)

    def abort(self) -> None:
        """As `Giver.abort`. What the backend still does touches nothing of the caller's."""
        with self._changed:
            self._broken = True
            self._changed.notify_all()
        self._jobs.put(None)

    def close(self) -> None:
        """The group's threads and sockets go: at once where nothing is under way, else when that has run into its
        deadline. Idempotent."""
        self.abort()
        with self._changed:
            idle = self._answered == self._asked
        if idle:
            self._thread.join(MARGIN_S)

    def _check(self) -> None:
        """The stage may still be somebody's once an operation was broken off."""
        if self._broken:
            raise PeerLost("the pair of processes is broken", remedy="connect anew")

    def _staged(self, length: int) -> int:
        if self._stage.numel() < length:
            self._stage = torch.empty(length, dtype=torch.uint8)
        return int(self._stage.data_ptr())

    def _do(self, begin: Callable[[torch.Tensor], Any], length: int, deadline: Deadline) -> None:
        seconds = deadline.left()
        with self._changed:
            self._asked += 1
            turn = self._asked
            self._jobs.put(_Job(begin, length, seconds))
            done = self._changed.wait_for(lambda: self._broken or self._answered == turn, seconds + MARGIN_S)
            if done and self._answered == turn and self._error is None:
                return
            self._broken = True
            raise PeerLost(
                f"the pair of processes is broken: {self._error or 'it was broken off'}", remedy="connect anew"
            )

    def _work(self) -> None:
        """The pair's thread: the group lives and dies here."""
        while (job := self._jobs.get()) is not None and self._error is None:
            error = self._carry_out(job)
            with self._changed:
                self._answered, self._error = self._answered + 1, error
                self._changed.notify_all()
        group, self._group = self._group, None
        _drop(group)

    def _carry_out(self, job: _Job) -> str | None:
        try:
            tensor = self._stage[: job.length].to(self._device)  # the stage itself, where that is the host
            job.begin(tensor).wait(timedelta(seconds=job.seconds))
            self._stage[: job.length].copy_(tensor)
        except RuntimeError as error:  # whatever a backend raises is one
            return str(error)
        return None


def backend_of(device: str) -> str:
    """`device` as torch names it (`cuda:1`). Raises TransferError where there is no backend for such a device."""
    kind, _, _ = device.partition(":")
    if kind not in BACKENDS:
        raise TransferError(f"no backend for tensors on {device!r}", remedy="use TRANSPORT: tcp")
    return BACKENDS[kind]


def join(channel: Channel, side: Side, deadline: Deadline, *, backend: str = "gloo", device: str = "cpu") -> Pair:
    """Make the pair; both sides call it at the same point of what they say over `channel`. `device`: where this side's
    tensors lie.

    Raises:
        TransferError: it could not be made: nothing of it is left, the other side was told, and the channel is of no
            use any more.
    """
    meeting = Meeting(channel, deadline)
    group = None
    try:
        if backend != backend_of(device):
            raise TransferError(f"no backend {backend!r} for tensors on {device!r}", remedy="use TRANSPORT: tcp")
        group = _group(backend, meeting, side, channel.local, deadline)
        _probe(group, side, device, deadline)
    except (RuntimeError, TransferError, OSError) as error:
        meeting.failed(f"{type(error).__name__}: {error}")
        _drop(group)
        raise error if isinstance(error, TransferError) else TransferError(f"no {backend} pair: {error}") from error
    try:
        meeting.joined()
    except TransferError:
        _drop(group)
        raise
    return Pair(group, side, device)


def _drop(group: Any) -> None:
    """Dropping the last reference, the caller's, is what closes the sockets; `abort` is for backends on devices."""
    if group is not None:
        with contextlib.suppress(RuntimeError):
            group.abort()


def _probe(group: Any, side: Side, device: str, deadline: Deadline) -> None:
    """A few bytes through it: some backends connect only now, and need the meeting for it."""
    tensor = torch.zeros(_PROBE, dtype=torch.uint8, device=device)
    work = group.send([tensor], 1, 0) if side is Side.SOURCE else group.recv([tensor], 0, 0)
    work.wait(timedelta(seconds=deadline.left()))


def _group(backend: str, meeting: Meeting, side: Side, host: str, deadline: Deadline) -> Any:
    limit = timedelta(seconds=max(OPERATION_S, deadline.left()))
    if backend == "gloo":
        options = dist.ProcessGroupGloo._Options()
        options._devices = [dist.ProcessGroupGloo.create_device(hostname=host, lazy_init=False)]
        options._timeout = timedelta(seconds=deadline.left())
        options._threads = 1
        return dist.ProcessGroupGloo(meeting, int(side), 2, options)
    if backend == "nccl":
        make = getattr(dist, "ProcessGroupNCCL", None)
    else:
        make = getattr(getattr(sys.modules.get("torch_npu"), "_C", None), "_distributed_c10d", None)
        make = getattr(make, "ProcessGroupHCCL", None)
    if make is None:
        raise TransferError(f"this torch has no {backend}", remedy="use TRANSPORT: tcp")
    options = make.Options()
    options._timeout = limit
    return make(meeting, int(side), 2, options)
