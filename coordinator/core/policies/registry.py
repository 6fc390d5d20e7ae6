"""The policies there are, by the name under `policy:` in `vnpu.yaml`."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from coordinator.core.policies.cost_aware import CostAware
from coordinator.core.policies.landlord import Landlord
from coordinator.core.policies.lru import LeastRecentlyUsed
from coordinator.core.policy import EvictionPolicy
from coordinator.errors import ConfigError

DEFAULT = "cost_aware"


class _NoOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """For a policy that takes none."""


_OPTIONS: Mapping[str, type[LeastRecentlyUsed] | type[_NoOptions] | type[CostAware]] = {
    "lru": LeastRecentlyUsed,
    "landlord": _NoOptions,
    "cost_aware": CostAware,
}
POLICIES = tuple(_OPTIONS)


def make(name: str, options: Mapping[str, object] | None = None) -> EvictionPolicy:
    """A new one, with `options` of its own. Raises ConfigError for a name or an option that there is not."""
    if name not in _OPTIONS:
        raise ConfigError(f"no policy is called {name!r}", remedy=f"there are {', '.join(POLICIES)}")
    try:
        made = msgspec.convert(dict(options or {}), _OPTIONS[name])
    except msgspec.ValidationError as error:
        fields = _OPTIONS[name].__struct_fields__
        remedy = f"its options are {', '.join(fields)}" if fields else "it has no options"
        raise ConfigError(f"policy {name}: {error}", remedy=remedy) from None
    return Landlord() if isinstance(made, _NoOptions) else made
