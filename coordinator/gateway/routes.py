"""Where a model's requests may go: names and aliases, endpoints, and which endpoint has least to do.

Written by the loop that runs the scheduler, read by request handlers on the same event loop: no locks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import msgspec

from coordinator.core.commands import Endpoint, Route

GONE_GRACE_S = 15.0
"""A model whose engines all vanished is still waited for that long: after a loss of leases they register again."""


class Routes:
    """The routing table. `configured` models exist whether an engine of theirs has registered yet or not."""

    def __init__(
        self, configured: Iterable[str] = (), hidden: Iterable[str] = (), aliases: Mapping[str, str] | None = None
    ) -> None:
        """As `configure`."""
        self._routes: dict[str, Route] = {}
        self._gone: dict[str, float] = {}
        self.configure(configured, hidden, aliases or {})

    def configure(self, configured: Iterable[str], hidden: Iterable[str], aliases: Mapping[str, str]) -> None:
        """From now on. `hidden` have routes, and no client can name them. `aliases` go before those that engines
        have."""
        self._known_aliases = dict(aliases)
        self._hidden = frozenset(hidden)
        self._configured = frozenset(configured) - self._hidden
        self._name_aliases()

    def apply(self, route: Route, now: float) -> None:
        """Take `route` as the truth about its model from `now` on (monotonic seconds)."""
        if route.gone:
            self._routes.pop(route.model, None)
            self._gone[route.model] = now
        else:
            self._gone.pop(route.model, None)
            self._routes[route.model] = route
        self._name_aliases()

    def _name_aliases(self) -> None:
        named = [each for each in self._routes.values() if each.model not in self._hidden]
        told = {alias: each.model for each in named for alias in each.aliases}
        self._aliases = {**told, **self._known_aliases}

    def resolve(self, name: str, now: float) -> str | None:
        """The model that `name` means: its own name first, then an alias. None: there is no such model."""
        if name in self._hidden:
            return None
        if name in self._routes or name in self._configured:
            return name
        if now - self._gone.get(name, -GONE_GRACE_S) < GONE_GRACE_S:
            return name
        return self._aliases.get(name)

    def is_served(self, model: str) -> bool:
        """An engine of it has registered, resident or not."""
        return model in self._routes

    def endpoints(self, model: str) -> tuple[Endpoint, ...]:
        route = self._routes.get(model)
        return route.endpoints if route is not None else ()

    @property
    def all_endpoints(self) -> list[Endpoint]:
        return [endpoint for route in self._routes.values() for endpoint in route.endpoints]

    def aliases(self, model: str) -> tuple[str, ...]:
        """In order; without those that mean another model."""
        return tuple(sorted(alias for alias, meant in self._aliases.items() if meant == model))

    @property
    def models(self) -> list[str]:
        return sorted({*self._configured, *self._routes} - self._hidden)


class _Use(msgspec.Struct):
    running: int = 0
    turn: int = 0
    not_before: float = 0.0


class Balancer:
    """Chooses among a model's endpoints the one with the fewest of our requests, in turn among equals."""

    def __init__(self) -> None:
        self._uses: dict[Endpoint, _Use] = {}
        self._turn = 0

    def choose(self, endpoints: Iterable[Endpoint], now: float) -> Endpoint | None:
        """None: all of them are to be left alone for now, or there is none."""
        open_ = [endpoint for endpoint in endpoints if self._use(endpoint).not_before <= now]
        if not open_:
            return None
        return min(open_, key=lambda endpoint: (self._use(endpoint).running, self._use(endpoint).turn))

    def retry_at(self, endpoints: Iterable[Endpoint]) -> float:
        """When the first of `endpoints` may be tried again; infinity: there is none."""
        return min((self._use(endpoint).not_before for endpoint in endpoints), default=float("inf"))

    def avoid(self, endpoint: Endpoint, until: float) -> None:
        """It did not take a request: leave it alone until then (monotonic seconds)."""
        self._use(endpoint).not_before = until

    def keep(self, endpoints: Iterable[Endpoint]) -> None:
        """Forget every endpoint that is in no route any more and works on nothing of ours."""
        kept = set(endpoints)
        self._uses = {each: use for each, use in self._uses.items() if each in kept or use.running}

    @contextmanager
    def using(self, endpoint: Endpoint) -> Iterator[None]:
        use = self._use(endpoint)
        self._turn += 1
        use.running += 1
        use.turn = self._turn
        try:
            yield
        finally:
            use.running -= 1

    def running(self, endpoint: Endpoint) -> int:
        return self._use(endpoint).running

    def _use(self, endpoint: Endpoint) -> _Use:
        return self._uses.setdefault(endpoint, _Use())
