"""What happened between two looks at a node, in lines: for `vnpu-watch events` and the live screen. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from coordinator.cli.view import DeviceView, ModelView, View
from coordinator.core.model import Decision


class Happening(msgspec.Struct, frozen=True):
    """`at`: Unix time of the look that saw it. `kind`: leader, device, model or decision; `about`: its id."""

    at: float
    kind: str
    about: str
    what: str


def happened(before: View, after: View, decided: Iterable[Decision], at: float) -> list[Happening]:
    """`decided`: the decisions that are new since `before`."""
    found = [
        *_leader(before, after),
        *(("decision", each.engine, f"{each.order} {each.engine}: {each.cause}") for each in decided),
        *_devices(before, after),
        *_models(before, after),
    ]
    return [Happening(at, kind, about, what) for kind, about, what in found]


def past(decision: Decision) -> Happening:
    """As it would have been seen then."""
    return Happening(decision.at, "decision", decision.engine, f"{decision.order} {decision.engine}: {decision.cause}")


Line = tuple[str, str, str]


def _leader(before: View, after: View) -> Iterator[Line]:
    if before.leader != after.leader:
        yield "leader", after.leader, f"{after.leader} leads" if after.leader else f"{before.leader} leads no more"
    if before.doubt != after.doubt:
        yield "leader", after.leader, after.doubt or "etcd is heard again"


def _devices(before: View, after: View) -> Iterator[Line]:
    had, has = {each.id: each for each in before.devices}, {each.id: each for each in after.devices}
    for name in sorted(had.keys() | has.keys()):
        if name not in had or name not in has:
            yield "device", name, f"{name} is {'here' if name in has else 'gone: its daemon is away'}"
        else:
            yield from _operation(had[name], has[name])


def _operation(before: DeviceView, after: DeviceView) -> Iterator[Line]:
    if before.operation == after.operation:
        return
    if after.operation is None and before.operation is not None:
        yield "device", after.id, f"{before.operation.order} of {before.operation.engine} on {after.id} is over"
    elif after.operation is not None and after.operation.entered:
        yield "device", after.id, f"{after.operation.engine} is at its {after.operation.order} on {after.id}"


def _models(before: View, after: View) -> Iterator[Line]:
    had, has = {each.engine: each for each in before.models}, {each.engine: each for each in after.models}
    for name in sorted(had.keys() | has.keys()):
        if name not in had:
            yield "model", has[name].model, f"{name} is here, {has[name].phase}"
        elif name not in has:
            yield "model", had[name].model, f"{name} is gone"
        else:
            for what in _changed(had[name], has[name]):
                yield "model", has[name].model, f"{name} {what}"


def _changed(before: ModelView, after: ModelView) -> Iterator[str]:
    if before.phase != after.phase:
        yield f"is {after.phase}"
    if not before.waiting and after.waiting:
        yield "is waited for"
    for flag in ("pinned", "drained"):
        if getattr(before, flag) != getattr(after, flag):
            yield f"is {flag}" if getattr(after, flag) else f"is not {flag} any more"
    if after.error and before.error != after.error:
        yield f"says: {after.error}"
