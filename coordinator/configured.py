"""What `vnpu.yaml` says about models and policy, in the scheduler's words: at the start, and when it is read again."""

from __future__ import annotations

from coordinator.config import Config, Defaults
from coordinator.config_replicas import models_of
from coordinator.core.events import Reconfigured
from coordinator.core.model import ModelId
from coordinator.core.policies.registry import make
from coordinator.core.scheduler import Scheduler
from coordinator.core.settings import Settings


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


def reconfigured(config: Config) -> Reconfigured:
    """For a scheduler that runs."""
    policy = config.policy
    return Reconfigured(
        _settings(config, config.defaults),
        _models(config),
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
