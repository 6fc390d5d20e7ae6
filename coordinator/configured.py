"""What `vnpu.yaml` says about models and policy, in the scheduler's words: at the start, and when it is read again."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from coordinator.config import Config, Defaults
from coordinator.config_replicas import model_of, models_of
from coordinator.config_roles import pairs
from coordinator.core.events import Reconfigured
from coordinator.core.model import ModelId
from coordinator.core.policies.registry import make
from coordinator.core.scheduler import Scheduler
from coordinator.core.settings import Settings
from coordinator.gateway.settings import Names


def scheduler(config: Config) -> Scheduler:
    """The core, as configured."""
    policy = config.policy
    return Scheduler(
        _settings(config, config.defaults),
        _models(config),
        policy=make(policy.name, policy.options),
        options=policy.options,
        shadow=make(policy.shadow) if policy.shadow is not None else None,
        predict=policy.predict,
    )


def names(config: Config, left: Iterable[str] = ()) -> Names:
    """By what clients can ask for its models."""
    aliases = {alias: model_of(name) for name, model in config.models.items() for alias in model.aliases}
    return Names(models_of(config.models), aliases, pairs(config.models), frozenset(left))


def reconfigured(config: Config, left: Iterable[str] = ()) -> Reconfigured:
    """For a scheduler that runs. Engines of the models in `left` may still be there: they end what they have begun."""
    policy = config.policy
    defaults = _settings(config, config.defaults)
    leaving = {ModelId(name): msgspec.structs.replace(defaults, drained=True) for name in left}
    return Reconfigured(
        defaults,
        {**_models(config), **leaving},
        policy.name,
        policy.options,
        policy.shadow,
        policy.predict,
    )


def _models(config: Config) -> dict[ModelId, Settings]:
    return {ModelId(name): _settings(config, config.models[name]) for name in models_of(config.models)}


def _settings(config: Config, model: Defaults) -> Settings:
    return Settings(
        pin=model.pin,
        priority=model.priority,
        keep_alive=_seconds(model.keep_alive),
        min_residency=float(model.min_residency),
        max_wait=float(config.gateway.max_wait if model.max_wait is None else model.max_wait),
        ttft_objective=_seconds(model.ttft_objective),
    )


def _seconds(duration: float | None) -> float | None:
    """A plain number: the configuration's own kind of float cannot be encoded, and settings are shown to people."""
    return None if duration is None else float(duration)
