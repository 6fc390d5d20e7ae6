"""Draws the picture that `Scheduler.view` hands out."""

from __future__ import annotations

from coordinator.core.commands import Grant
from coordinator.core.entries import DeviceEntry, EngineEntry
from coordinator.core.model import Bytes, ModelId, Order, Phase
from coordinator.core.process import Life
from coordinator.core.processes import ProcessEntry
from coordinator.core.round import Desk
from coordinator.core.routes import Routes
from coordinator.core.starts import Starts
from coordinator.core.victims import World
from coordinator.core.view import DeviceState, EngineState, ModelState, OwnerState, PendingState, State

_PHASES = {
    Life.STOPPED: Phase.STOPPED,
    Life.STARTING: Phase.STARTING,
    Life.RUNNING: Phase.STARTING,
    Life.STOPPING: Phase.STOPPED,
    Life.FAILED: Phase.FAILED,
}


def snapshot(world: World, desk: Desk, starts: Starts, routes: Routes, *, leading: bool) -> State:
    """Everything that is known."""
    ledger, now = world.ledger, world.now
    models = sorted({*ledger.models, *ledger.processes.models, *world.demand.models})
    registered = [_engine(world, ledger.engines[id_], now) for id_ in sorted(ledger.engines)]
    asleep = [_process(entry) for id_, entry in ledger.processes.entries.items() if id_ not in ledger.engines]
    return State(
        leading=leading,
        epoch=ledger.epoch,
        revision=ledger.revision,
        devices=tuple(_device(world, desk, ledger.devices[id_], now) for id_ in sorted(ledger.devices)),
        engines=tuple(sorted(registered + [one for one in asleep if one is not None], key=lambda one: one.id)),
        models=tuple(_model(world, desk, starts, routes, model, now) for model in models),
        pending=tuple(_pending(command) for command in desk.orders.pending.values() if isinstance(command, Grant))
        + tuple(
            PendingState(command.id, Order.RECLAIM, command.holder.engine, tuple(s.device for s in command.seats))
            for command in desk.orders.pending.values()
            if not isinstance(command, Grant)
        ),
        next_decision=desk.orders.next_decision,
    )


def _pending(grant: Grant) -> PendingState:
    return PendingState(grant.id, grant.order, grant.holder.engine, tuple(seat.device for seat in grant.seats))


def _device(world: World, desk: Desk, entry: DeviceEntry, now: float) -> DeviceState:
    state = entry.state
    owners = tuple(
        OwnerState(
            holder,
            held,
            alive=not entry.dying(holder),
            lost_s=now - entry.lost_at[holder] if holder in entry.lost_at else None,
        )
        for holder, held in sorted(entry.held.items())
    )
    return DeviceState(
        id=entry.id,
        present=state is not None,
        capacity=state.capacity if state is not None else 0,
        charged=entry.charged,
        blocked=world.ledger.blocked(entry.id) or desk.orders.blocked(entry.id, now),
        open=state.open if state is not None else None,
        seat=entry.seat,
        seat_revision=entry.fence,
        closed=state.closed if state is not None else 0,
        owners=owners,
        token=entry.token,
    )


def _engine(world: World, entry: EngineEntry, now: float) -> EngineState:
    at = world.stand(entry)
    residency = entry.residency
    return EngineState(
        id=entry.id,
        model=entry.model or "",
        url=entry.spec.url if entry.spec is not None else "",
        devices=entry.devices,
        phase=entry.phase,
        standing=at.standing,
        why=at.why,
        footprint=entry.spec.footprint if entry.spec is not None else Bytes(),
        held=residency.held if residency is not None else Bytes(),
        running=entry.load.running,
        waiting=entry.load.waiting,
        idle_s=0.0 if world.busy(entry) else max(0.0, now - entry.active_at),
        failures=entry.failures,
        error=residency.error if residency is not None else "",
    )


def _process(entry: ProcessEntry) -> EngineState | None:
    """An engine that is known by its supervisor's word alone. None: not even that."""
    process = entry.process
    if process is None:
        return None
    return EngineState(
        id=entry.id,
        model=process.model,
        url="",
        devices=process.devices,
        phase=_PHASES[process.life],
        standing=process.life,
        why=entry.order.cause if entry.order is not None and entry.order.keeper == process.keeper else "",
        footprint=Bytes(weights=process.weights // len(process.devices)),
        held=Bytes(),
        running=0,
        waiting=0,
        idle_s=0.0,
        error=process.error,
    )


def _model(world: World, desk: Desk, starts: Starts, routes: Routes, model: ModelId, now: float) -> ModelState:
    engines = world.ledger.engines_of(model)
    kept = {entry.id for entry in world.ledger.processes.of(model)}
    since = starts.since(model) if desk.queue.since(model) is None else desk.queue.since(model)
    return ModelState(
        id=model,
        settings=world.models.of(model),
        engines=tuple(sorted({*kept, *(engine.id for engine in engines)})),
        endpoints=routes.endpoints(model),
        waiting=world.demand.waiting(model) + sum(engine.load.waiting for engine in engines),
        waiting_s=now - since if since is not None else None,
        refused=desk.refusals.reason(model),
    )
