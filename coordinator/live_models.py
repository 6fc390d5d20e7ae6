"""Models that come and go while a node runs: which of a configuration that was read again its supervisor can take up,
and which must wait for a restart. Pure.

What runs already goes on as it was started. The engines of one model come and go together, but for a replica that is
added to others.
"""

from __future__ import annotations

import msgspec

from coordinator.config import Config
from coordinator.config_replicas import model_of
from coordinator.config_roles import PREFILL

WITH_NODE = "restart the node"


def carried(running: Config, now: Config) -> Config:
    """What the node runs with from now on: as it was started, with the models of `now` that can come in, and without
    those that can leave."""
    kept = {name: model for name, model in running.models.items() if name in now.models or why_stays(name, now)}
    added = {
        name: model for name, model in now.models.items() if name not in kept and not why_not_in(name, running, now)
    }
    gateway = msgspec.structs.replace(running.gateway, max_queue=now.gateway.max_queue, max_wait=now.gateway.max_wait)
    return msgspec.structs.replace(running, models={**kept, **added}, gateway=gateway)


def why_not_in(name: str, running: Config, now: Config) -> str:
    """Why this engine of `now` cannot be started beside those that run; empty: it can."""
    base = _base(name)
    if base + PREFILL in now.models and base in running.models:
        return f"{base} runs without roles: {WITH_NODE}"
    coming = (other for other in now.models if _base(other) == base and other not in running.models)
    return next((why for other in coming if (why := _no_place(other, running, now))), "")


def _no_place(name: str, running: Config, now: Config) -> str:
    model = now.models[name]
    if model.anywhere:
        return "" if now.devices == running.devices else f"the devices have changed too: {WITH_NODE}"
    same = {device.name for device in now.devices if device in running.devices}
    missing = [device for device in model.devices if device not in same]
    return f"the running node has no such device {missing[0]}: {WITH_NODE}" if missing else ""


def why_stays(name: str, now: Config) -> str:
    """Why this engine, of which `now` says nothing, is not ended; empty: it is."""
    base = _base(name)
    if any(_base(other) == base for other in now.models):
        return f"other engines of {base} go on: {WITH_NODE}"
    return ""


def _base(name: str) -> str:
    """The model whose engine this is."""
    return model_of(name).removesuffix(PREFILL)
