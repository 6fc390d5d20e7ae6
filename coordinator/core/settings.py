"""What the operator decides about a model, and the scheduler's own patience.

`vnpu.yaml` gives defaults and models, `policy/<model>` in etcd overrides them while it stands. Times are seconds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import msgspec

from coordinator.core.model import ModelId, Policy

DECISION_RING = 1024
"""`decisions/<n>`: decision number n stands in slot n % DECISION_RING."""


class Settings(msgspec.Struct, frozen=True):
    """How one model is treated.

    `pin`: never a victim and never offloaded for being idle; it is not woken for it either.
    `priority`: among victims that are equally idle or busy, the lower goes first; breaks ties among those that wait.
    `keep_alive`: offloaded after this long without work. None: stays until its memory is needed; 0: goes at once when
    idle (after `min_residency`).
    `min_residency`: stays at least this long once resident, and a busy victim is only taken by demand that has waited
    this long. 0 allows thrash: then a model may leave before it has served anything.
    `max_wait`: how long a request may wait for it; the gateways and gates obey it, the scheduler only shows it.
    `ttft_objective`: how soon a request's first token is wanted; None: no wish. Policies that know costs keep a model
    longer the more its restore exceeds it.
    `drained`: serves what is in its engines, takes nothing new from gateways, then leaves.
    """

    pin: bool = False
    priority: int = 0
    keep_alive: float | None = 300.0
    min_residency: float = 2.0
    max_wait: float = 300.0
    drained: bool = False
    ttft_objective: float | None = None

    def overridden(self, by: Policy | None) -> Settings:
        """These settings with every field that `by` sets."""
        if by is None:
            return self
        return Settings(
            pin=self.pin if by.pin is None else by.pin,
            priority=self.priority if by.priority is None else by.priority,
            keep_alive=self.keep_alive if by.keep_alive is None else by.keep_alive,
            min_residency=self.min_residency if by.min_residency is None else by.min_residency,
            max_wait=self.max_wait if by.max_wait is None else by.max_wait,
            drained=by.drained,
            ttft_objective=self.ttft_objective if by.ttft_objective is None else by.ttft_objective,
        )


class Limits(msgspec.Struct, frozen=True):
    """The scheduler's patience. The first four are the `limit_s` of seats.

    `lost_s`: an owner without spec may be reclaimed after that long, when its pages are needed (PROTOCOL rule 10: 2
    lease TTL). `abandoned_s`: the same though nobody needs them: a frozen process keeps its model away for ever.
    `answer_s`: how long an engine may owe the residency for an operation that the daemon has closed.
    `startup_delay_s`: a start-up queues as if it had come that much later than a request.
    `retry_s`, `retry_most_s`: back-off after an operation that failed, doubling.
    """

    startup_s: float = 600.0
    restore_s: float = 60.0
    offload_s: float = 60.0
    reclaim_s: float = 30.0
    lost_s: float = 10.0
    abandoned_s: float = 60.0
    answer_s: float = 5.0
    startup_delay_s: float = 30.0
    retry_s: float = 1.0
    retry_most_s: float = 60.0

    def backoff(self, failures: int) -> float:
        """Seconds to wait after the `failures`-th failure in a row."""
        return min(self.retry_most_s, self.retry_s * 2.0 ** min(failures - 1, 30))


class Models:
    """Settings by model: configured ones, overridden by what stands in etcd. `kept(model)`: for how many seconds
    requests want it kept (infinity: until its memory is needed); None: as configured."""

    def __init__(
        self,
        defaults: Settings,
        configured: dict[ModelId, Settings],
        kept: Callable[[ModelId], float | None],
    ) -> None:
        self._kept = kept
        self._defaults = defaults
        self._configured = configured
        self._overrides: dict[ModelId, Policy] = {}

    def configure(self, defaults: Settings, configured: Mapping[ModelId, Settings]) -> None:
        """The file says otherwise now; what stands in etcd still goes before it."""
        self._defaults = defaults
        self._configured = dict(configured)

    def configured(self, model: ModelId) -> Settings:
        """As the file has it."""
        return self._configured.get(model, self._defaults)

    def overridden(self, model: ModelId) -> Policy | None:
        """What stands in etcd for it."""
        return self._overrides.get(model)

    def override(self, model: ModelId, policy: Policy | None) -> None:
        if policy is None:
            self._overrides.pop(model, None)
        else:
            self._overrides[model] = policy

    def forget(self) -> set[ModelId]:
        """Drop all overrides (a new listing brings those that stand). Returns the models that had one."""
        models = set(self._overrides)
        self._overrides.clear()
        return models

    def of(self, model: ModelId) -> Settings:
        """As configured; before that goes what requests ask for, and before both what the operator has set."""
        settings = self._configured.get(model, self._defaults)
        if (asked := self._kept(model)) is not None:
            settings = msgspec.structs.replace(settings, keep_alive=None if asked == math.inf else asked)
        by = self._overrides.get(model)
        return settings if by is None else settings.overridden(by)
