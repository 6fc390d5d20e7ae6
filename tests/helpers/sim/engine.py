"""An engine with its agent (PROTOCOL rule 5) and its gate, in virtual time."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import msgspec

from coordinator.core.events import Changed, EpochSeen, Listed, TokenSeen
from coordinator.core.model import Bytes, Fence, Holder, Load, Order, Phase, Residency, Spec, Token
from tests.helpers.sim.clockwork import Clockwork, Process, Script
from tests.helpers.sim.daemon import SimDaemon
from tests.helpers.sim.etcd import Etcd

LEASE_TTL = 5.0


class Request:
    """One client's request; `ended` says how: served, refused, lost."""

    def __init__(self, model: str, born: float, work: float) -> None:
        self.model = model
        self.born = born
        self.left = work
        self.begun_at: float | None = None
        self.ended = ""


class Kind(msgspec.Struct, frozen=True):
    """What a model's engine needs, on each of its devices. `name`: the engine's id, if not the model's."""

    model: str
    devices: tuple[str, ...]
    footprint: Bytes
    estimate: Bytes | None = None
    boot_s: float = 2.0
    restore_s: float = 0.3
    drain_s: float = 0.05
    name: str = ""
    digest: str = ""
    """Of its weights on each device; engines of the same one share them."""

    @property
    def engine(self) -> str:
        return self.name or self.model


class SimEngine:
    """One process; a restart is another one with another nonce."""

    def __init__(
        self,
        clockwork: Clockwork,
        etcd: Etcd,
        daemon_of: Callable[[str], SimDaemon],
        id_: str,
        nonce: str,
        kind: Kind,
        ended: Callable[[Request, str], None],
    ) -> None:
        self.clockwork = clockwork
        self.etcd = etcd
        self.daemon_of = daemon_of
        self.kind = kind
        self.holder = Holder(id_, nonce)
        self.ended = ended
        self.alive = True
        self.stuck = False
        """It hangs and will never go on by itself."""
        self.phase = Phase.STARTING
        self.resident_at: float | None = None
        self.measured = False
        self.lease = 0
        self.last = 0
        self.epoch = ""
        self.tokens: dict[str, tuple[Token, int]] = {}
        self.fence: Fence | None = None
        self.working = False
        self.waiting: list[Request] = []
        self.running: list[Request] = []
        self._spurt = 0
        self._resumed_at = 0.0
        self._load_due = False
        self.process = Process(clockwork, self._life())
        self.watch = etcd.watch(self.see, lambda: etcd.rng.uniform(0.0, 0.02))

    # ---- faults

    def crash(self) -> None:
        self.alive = False
        self.process.kill()
        self.watch.closed = True
        self.etcd.watches.remove(self.watch)
        for request in self.waiting + self.running:
            self.ended(request, "lost")
        self.waiting, self.running = [], []
        lease = self.lease
        self.clockwork.after(LEASE_TTL, lambda: self.etcd.revoke(lease))
        self._tell_daemons()

    def hang(self) -> None:
        self.process.freeze()
        self._pause()
        lease = self.lease
        self.clockwork.after(LEASE_TTL, lambda: self.etcd.revoke(lease) if self.process.frozen else None)

    def resume(self) -> None:
        self.process.thaw()
        if self.phase is Phase.RESIDENT and not self.working:
            self._go_on()
        self.process.wake()

    def _tell_daemons(self) -> None:
        for device in self.kind.devices:
            daemon = self.daemon_of(device)
            self.clockwork.after(self.etcd.rng.uniform(0.0, 0.05), daemon.advance)

    # ---- its view

    def see(self, event: Listed | Changed) -> None:
        if isinstance(event, Listed):
            self.tokens.clear()
        for fact in event.facts:
            match fact:
                case EpochSeen(epoch=epoch):
                    epoch_id = epoch.id if epoch is not None else ""
                    self.last = self.last if epoch_id == self.epoch else 0
                    self.epoch = epoch_id
                case TokenSeen(device=device, token=token, revision=revision) if device in self.kind.devices:
                    self.tokens.pop(device, None)
                    if token is not None:
                        self.tokens[device] = (token, revision)
                case _:
                    pass
        self.process.wake()

    def _permit(self) -> tuple[Order, int] | None:
        mine = [self.tokens.get(device) for device in self.kind.devices]
        revisions = {each[1] for each in mine if each is not None and each[0].lease == self.lease}
        if any(each is None or each[0].holder != self.holder for each in mine) or len(revisions) != 1:
            return None
        revision = revisions.pop()
        token = mine[0]
        return (token[0].order, revision) if token is not None and revision > self.last else None

    # ---- its life

    def _life(self) -> Script:
        yield self.etcd.rng.uniform(0.0, 0.1)
        while True:
            if self.lease not in self.etcd.leases:
                yield self.etcd.rng.uniform(0.1, 1.0)
                self._register()
            permit = self._permit()
            if permit is not None and self.epoch:
                yield from self._operate(permit[0], Fence(self.epoch, permit[1]))
            elif self.lease in self.etcd.leases:
                yield None

    def _register(self) -> None:
        self.lease, self.last = self.etcd.lease(), 0
        self.etcd.txn([
            (("spec", self.holder.engine), self._spec(), self.lease),
            (("residency", self.holder.engine), self._residency(""), self.lease),
        ])  # fmt: skip
        self._tell_load()

    def _spec(self) -> Spec:
        estimate = self.kind.estimate if self.kind.estimate is not None else self.kind.footprint
        return Spec(
            holder=self.holder,
            model=self.kind.model,
            url=f"http://{self.holder.engine}",
            devices=self.kind.devices,
            pid=1,
            boot_id="boot",
            footprint=self.kind.footprint if self.measured else estimate,
            measured=self.measured,
            digest=",".join([self.kind.digest] * len(self.kind.devices)) if self.measured else "",
        )

    def _residency(self, error: str) -> Residency:
        return Residency(holder=self.holder, phase=self.phase, fence=self.fence, busy=self.working, error=error)

    def _publish(self, error: str = "") -> None:
        if self.lease in self.etcd.leases:
            self.etcd.txn([(("residency", self.holder.engine), self._residency(error), self.lease)])

    def _operate(self, order: Order, fence: Fence) -> Script:
        lease, before = self.lease, self.phase
        self.working = True
        works = before is Phase.RESIDENT if order is Order.OFFLOAD else before in (Phase.OFFLOADED, Phase.STARTING)
        if works and order is Order.OFFLOAD:
            self._pause()
            self.phase = Phase.DRAINING
            yield self.kind.drain_s * self.etcd.rng.uniform(0.5, 2.0)
        entered: list[str] = []
        yield from self._enter(fence, entered)
        error = "" if len(entered) == len(self.kind.devices) else "enter refused"
        reached = before
        if not error and works:
            error = yield from self._work(order, before)
            reached = Phase.RESIDENT if order is Order.RESTORE and not error else Phase.OFFLOADED
        whole = bool(entered) and len(entered) == len(self.kind.devices)
        said = Residency(holder=self.holder, phase=reached, fence=fence, error=error)
        key = ("residency", self.holder.engine)
        # Half of the time somebody's old daemon, or one that may not write there.
        answer = (said, self.etcd.mod(key)) if whole and self.etcd.rng.random() < 0.5 else None
        for device in entered:
            while not self.daemon_of(device).leave(device, self.holder, fence, answer):
                yield 0.1
        self.phase, self.working = reached, False
        if whole:
            self.fence = fence
        if lease == self.lease and self.epoch == fence.epoch:
            self.last = max(self.last, fence.revision)
        if self.phase is Phase.RESIDENT:
            self.resident_at = self.clockwork.now if before is not Phase.RESIDENT else self.resident_at
            self._go_on()
        yield self.etcd.rng.choice((0.0, 0.01, 0.2))
        if before is Phase.STARTING and self.phase is Phase.RESIDENT and self.lease in self.etcd.leases:
            self.measured = True
            self.etcd.txn([(("spec", self.holder.engine), self._spec(), self.lease)])
        if self.etcd.get(key) != said:
            self._publish(error)

    def _enter(self, fence: Fence, entered: list[str]) -> Script:
        for device in self.kind.devices:
            while (answer := self.daemon_of(device).enter(device, self.holder, fence)) == "wait":
                yield 0.02
            if answer != "accepted":
                return
            entered.append(device)
            yield 0.001

    def _work(self, order: Order, before: Phase) -> Iterator[float]:
        """Returns an error; empty: memory is as ordered."""
        if order is Order.OFFLOAD:
            yield self.kind.drain_s
            self._unmap(self.kind.devices)
            return ""
        mapped: list[str] = []
        for device in self.kind.devices:
            joins = before is not Phase.STARTING
            if not self.daemon_of(device).map(device, self.holder, self.kind.footprint, self.kind.digest, joins=joins):
                self._unmap(tuple(mapped))
                return "denied pages"
            mapped.append(device)
        yield self.kind.boot_s if before is Phase.STARTING else self.kind.restore_s
        return ""

    def _unmap(self, devices: tuple[str, ...]) -> None:
        for device in devices:
            self.daemon_of(device).unmap(device, self.holder)

    # ---- serving

    def admit(self, request: Request) -> None:
        if self.phase is Phase.RESIDENT and not self.working and not self.process.frozen:
            self._begin(request)
        else:
            self.waiting.append(request)
        self._tell_load()

    def _begin(self, request: Request) -> None:
        request.begun_at = request.begun_at if request.begun_at is not None else self.clockwork.now
        self.running.append(request)
        spurt, started = self._spurt, self.clockwork.now
        self._resumed_at = started
        self.clockwork.after(request.left, lambda: self._finish(request, spurt))

    def _finish(self, request: Request, spurt: int) -> None:
        if spurt == self._spurt and request in self.running:
            self.running.remove(request)
            self.ended(request, "served")
            self._tell_load()

    def _pause(self) -> None:
        """What runs is kept, and goes on later where it was (roughly)."""
        self._spurt += 1
        for request in self.running:
            request.left = max(0.01, request.left / 2)

    def _go_on(self) -> None:
        again, self.running = self.running + self.waiting, []
        self.waiting = []
        self._spurt += 1
        for request in again:
            self._begin(request)
        self._tell_load()

    def _tell_load(self) -> None:
        if not self._load_due:
            self._load_due = True
            self.clockwork.after(0.02 if self.waiting else 0.2, self._put_load)

    def _put_load(self) -> None:
        self._load_due = False
        load = Load(running=len(self.running), waiting=len(self.waiting))
        if self.alive and self.lease in self.etcd.leases and self.etcd.get(("load", self.holder.engine)) != load:
            self.etcd.txn([(("load", self.holder.engine), load, self.lease)])
