"""Draws the picture that `Scheduler.view` hands out."""

from __future__ import annotations

from coordinator.core.commands import Grant
from coordinator.core.entries import DeviceEntry, EngineEntry
from coordinator.core.model import Bytes, ModelId, Order
from coordinator.core.round import Desk
from coordinator.core.routes import Routes
from coordinator.core.standing import stand
from coordinator.core.victims import World
from coordinator.core.view import DeviceState, EngineState, ModelState, OwnerState, PendingState, State


def snapshot(world: World, desk: Desk, routes: Routes, now: float, *, leading: bool) -> State:
    """Everything that is known at `now`."""
    ledger = world.ledger
    models = sorted({*ledger.models, *world.demand.models})
    return State(
        leading=leading,
        epoch=ledger.epoch,
        revision=ledger.revision,
        devices=tuple(_device(world, desk, ledger.devices[id_], now) for id_ in sorted(ledger.devices)),
        engines=tuple(_engine(world, ledger.engines[id_], now) for id_ in sorted(ledger.engines)),
        models=tuple(_model(world, desk, routes, model, now) for model in models),
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
    at = stand(world.ledger, entry, now, world.limits)
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


def _model(world: World, desk: Desk, routes: Routes, model: ModelId, now: float) -> ModelState:
    engines = list(world.ledger.engines_of(model))
    since = desk.queue.since(model)
    return ModelState(
        id=model,
        settings=world.models.of(model),
        engines=tuple(engine.id for engine in engines),
        endpoints=routes.endpoints(model),
        waiting=world.demand.waiting(model) + sum(engine.load.waiting for engine in engines),
        waiting_s=now - since if since is not None else None,
        refused=desk.refusals.reason(model),
    )
