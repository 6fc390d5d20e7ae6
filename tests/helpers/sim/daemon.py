"""A node daemon with its devices: PROTOCOL rules 6-11 and 13, in virtual time."""

from __future__ import annotations

from collections.abc import Callable

from coordinator.core.entries import pages
from coordinator.core.events import Changed, DeviceSeen, EpochSeen, Listed, SeatSeen, SpecSeen, TokenSeen
from coordinator.core.model import Bytes, Device, Fence, Holder, Open, Order, Owner, Residency, Seat, Shared, Token
from tests.helpers.sim.clockwork import Clockwork
from tests.helpers.sim.etcd import Etcd, Watch


class Violated(AssertionError):
    """An invariant of the whole system does not hold."""


class SimDevice:
    """One device: what is persisted, and what the daemon's watch shows."""

    def __init__(self, id_: str, capacity: int, chunk: int) -> None:
        self.id = id_
        self.capacity = capacity
        self.chunk = chunk
        self.epoch = ""
        self.closed = 0
        self.open: tuple[Holder, int, Order, int] | None = None
        self.patience = 0.0
        """When the open operation is over its limit."""
        self.owners: dict[Holder, Bytes] = {}
        self.shares: dict[str, list[Holder]] = {}
        """By digest, who has these weights mapped: the first is charged for them."""
        self.entered: dict[str, int] = {}
        """Highest fence ever entered, by epoch: they must strictly increase (I1)."""
        self.seat: tuple[Seat, int] | None = None
        self.token: tuple[Token, int] | None = None

    @property
    def mapped(self) -> int:
        return sum(held.weights + held.kv for held in self.owners.values())

    def drop(self, holder: Holder) -> None:
        """It has unmapped all, or is dead: weights that others share go to the next of them."""
        gone = self.owners.pop(holder, Bytes())
        for digest, line in tuple(self.shares.items()):
            if holder in line:
                owned = line[0] == holder
                line.remove(holder)
                if not line:
                    del self.shares[digest]
                elif owned:
                    heir = self.owners[line[0]]
                    self.owners[line[0]] = Bytes(weights=heir.weights + gone.weights, kv=heir.kv)


class SimDaemon:
    """All devices of one node behind one watch and one lease."""

    def __init__(self, clockwork: Clockwork, etcd: Etcd, devices: list[SimDevice]) -> None:
        self.clockwork = clockwork
        self.etcd = etcd
        self.devices = {device.id: device for device in devices}
        self.alive: Callable[[Holder], bool] = lambda holder: True
        self.kill: Callable[[Holder], None] = lambda holder: None
        self.lease_of: Callable[[Holder], int] = lambda holder: 0
        self.denials = 0
        """How many of the next mappings are denied though there is room (a fault)."""
        self.epoch = ""
        self.revision = 0
        self.up = False
        self.lease = 0
        self.published: dict[str, Device] = {}
        self.answers: dict[Holder, tuple[Residency, int]] = {}
        """What engines said when they left, and the revision of their key that they knew."""
        self.watch: Watch | None = None
        self.start()

    # ---- life

    def start(self) -> None:
        if self.up:
            return
        self.up = True
        self.epoch, self.revision = "", 0
        self.published = {}
        self.answers = {}
        self.lease = 0
        self.watch = self.etcd.watch(self.see, lambda: self.etcd.rng.uniform(0.0, 0.02))

    def stop(self) -> None:
        """It dies; its keys go with its lease; what is persisted stays."""
        self.up = False
        if self.watch is not None:
            self.watch.closed = True
            self.etcd.watches.remove(self.watch)
        self.etcd.revoke(self.lease)
        for device in self.devices.values():
            device.seat = device.token = None

    # ---- its view

    def see(self, event: Listed | Changed) -> None:
        if isinstance(event, Listed):
            for device in self.devices.values():
                device.seat = device.token = None
            self.epoch = ""
        for fact in event.facts:
            match fact:
                case EpochSeen(epoch=epoch):
                    self.epoch = epoch.id if epoch is not None else ""
                case SeatSeen(device=id_, seat=seat, revision=revision) if id_ in self.devices:
                    self.devices[id_].seat = (seat, revision) if seat is not None else None
                case TokenSeen(device=id_, token=token, revision=revision) if id_ in self.devices:
                    self.devices[id_].token = (token, revision) if token is not None else None
                case SpecSeen() | DeviceSeen():
                    pass
                case _:
                    pass
        self.revision = event.revision
        self.advance()

    def advance(self) -> None:
        """Whatever follows from what is known (rules 8-10, 13), then publish."""
        if not self.up:
            return
        for device in self.devices.values():
            self._bury(device)
            if self.epoch and self.epoch != device.epoch:
                self._change_epoch(device)
            elif self.epoch and device.seat is not None and device.seat[1] > device.closed:
                self._follow(device, *device.seat)
            self._publish(device)

    def _bury(self, device: SimDevice) -> None:
        """Pages of the dead come back, what they had open is closed, their lease is revoked (rule 9)."""
        for holder in [holder for holder in device.owners if not self.alive(holder)]:
            device.drop(holder)
            self.etcd.revoke(self.lease_of(holder))
        if device.open is not None and not self.alive(device.open[0]):
            holder = device.open[0]
            self._close(device, device.open[1])
            self.etcd.revoke(self.lease_of(holder))

    def _change_epoch(self, device: SimDevice) -> None:
        if device.open is None:
            device.epoch, device.closed = self.epoch, 0
        elif self.clockwork.now >= device.patience:
            self.kill(device.open[0])

    def _follow(self, device: SimDevice, seat: Seat, revision: int) -> None:
        if seat.order is Order.RECLAIM:
            if self.alive(seat.holder):
                self.kill(seat.holder)
            elif device.open is None:
                self._close(device, revision)
        elif device.open is None and (device.token is None or device.token[1] != revision):
            self._close(device, revision)

    def _close(self, device: SimDevice, revision: int) -> None:
        device.closed = max(device.closed, revision)
        device.open = None

    def _publish(self, device: SimDevice) -> None:
        if not self.epoch or device.epoch != self.epoch or self.etcd.epoch != device.epoch:
            return
        if not self.lease or self.lease not in self.etcd.leases:
            self.lease = self.etcd.lease()
            self.published = {}
        open_ = Open(device.open[0], device.open[1], device.open[2]) if device.open is not None else None
        state = Device(
            driver="host",
            capacity=device.capacity,
            chunk=device.chunk,
            epoch=device.epoch,
            closed=device.closed,
            open=open_,
            owners=tuple(
                Owner(holder, held, alive=self.alive(holder)) for holder, held in sorted(device.owners.items())
            ),
            shared=tuple(Shared(digest, device.owners[line[0]].weights) for digest, line in device.shares.items()),
        )
        if self.published.get(device.id) != state:
            self.published[device.id] = state
            self.etcd.txn([(("device", device.id), state, self.lease), *self._said()])

    def _said(self) -> list[tuple[tuple[str, ...], object, int]]:
        """Answers of who is in no operation any more go along, once, where nothing has changed that they rest on."""
        inside = {device.open[0] for device in self.devices.values() if device.open is not None}
        left = {holder: self.answers.pop(holder) for holder in [*self.answers] if holder not in inside}
        said: list[tuple[tuple[str, ...], object, int]] = []
        for holder, (residency, above) in left.items():
            key, lease = ("residency", holder.engine), self.lease_of(holder)
            if lease in self.etcd.leases and self.etcd.mod(key) == above:
                said.append((key, residency, lease))
        return said

    # ---- what engines call

    def enter(self, id_: str, holder: Holder, fence: Fence) -> str:
        """`accepted`, `stale`, or `wait` (PROTOCOL rule 6)."""
        device = self.devices[id_]
        if not self.up or (device.epoch != self.epoch and fence.epoch == self.epoch):
            return "wait"
        if fence.epoch != device.epoch:
            return "stale" if self.epoch and fence.epoch != self.epoch else "wait"
        if fence.revision <= device.closed:
            return "stale"
        if self.revision < fence.revision:
            return "wait"
        if device.token is None or device.token[1] != fence.revision or device.token[0].holder != holder:
            return "stale"
        if device.open is not None:
            return "accepted" if device.open[:2] == (holder, fence.revision) else "wait"
        if fence.revision <= device.entered.get(fence.epoch, 0):
            raise Violated(f"I1: fence {fence.revision} entered on {id_} after {device.entered[fence.epoch]}")
        device.entered[fence.epoch] = fence.revision
        token = device.token[0]
        device.open = (holder, fence.revision, token.order, token.bytes)
        limit = device.seat[0].limit_s if device.seat is not None else 0.0
        device.patience = self.clockwork.now + limit
        self.clockwork.after(limit, self.advance)
        self._publish(device)
        return "accepted"

    def map(self, id_: str, holder: Holder, footprint: Bytes, digest: str = "", *, joins: bool = True) -> bool:
        """Pages for the whole footprint; False: denied. Weights of `digest` are shared: offered, and where it `joins`,
        those that another offers are mapped instead."""
        device = self.devices[id_]
        if device.open is None or device.open[0] != holder:
            raise Violated(f"I1: {holder.engine} maps on {id_} without an open operation")
        if self.denials:
            self.denials -= 1
            return False
        there = device.shares.get(digest, [])
        joins = joins and bool(there) and holder not in there
        need = pages(Bytes(kv=footprint.kv) if joins else footprint, device.chunk)
        others = sum(held.weights + held.kv for owner, held in device.owners.items() if owner != holder)
        if others + need > device.capacity or need > device.open[3]:
            raise Violated(
                f"a valid fence, and no room for {holder.engine} on {id_}: {others}+{need}>{device.capacity}"
            )
        weights = 0 if joins else pages(Bytes(weights=footprint.weights), device.chunk)
        if joins:
            there.append(holder)
        elif digest:
            device.shares.setdefault(digest, [holder])
        device.owners[holder] = Bytes(weights=weights, kv=need - weights)
        return True

    def unmap(self, id_: str, holder: Holder) -> None:
        device = self.devices[id_]
        if device.open is None or device.open[0] != holder:
            raise Violated(f"I1: {holder.engine} unmaps on {id_} without an open operation")
        device.drop(holder)

    def leave(self, id_: str, holder: Holder, fence: Fence, answer: tuple[Residency, int] | None = None) -> bool:
        """False: the daemon is away, try again."""
        device = self.devices[id_]
        if not self.up:
            return False
        if device.open is not None and device.open[:2] == (holder, fence.revision):
            self._close(device, fence.revision)
            if answer is not None:
                self.answers[holder] = answer
            self.advance()
        return True
