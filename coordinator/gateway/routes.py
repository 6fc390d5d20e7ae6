"""Where a model's requests may go: names and aliases, endpoints, and which endpoint has least to do.

Written by the loop that runs the scheduler, read by request handlers on the same event loop: no locks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager

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


class _Use:
    """What this gateway has an endpoint do; a block of it is one request."""

    __slots__ = ("not_before", "running", "turn")

    def __init__(self) -> None:
        self.running = 0
        self.turn = 0
        self.not_before = 0.0

    def __enter__(self) -> None:
        self.running += 1

    def __exit__(self, *_: object) -> None:
        self.running -= 1


class Balancer:
    """Chooses among a model's endpoints the one with the fewest of our requests, in turn among equals."""

    def __init__(self) -> None:
        self._uses: dict[Endpoint, _Use] = {}
        self._turn = 0

    def choose(self, endpoints: Sequence[Endpoint], now: float) -> Endpoint | None:
        """None: all of them are to be left alone for now, or there is none."""
        if len(endpoints) == 1:
            return endpoints[0] if self._use(endpoints[0]).not_before <= now else None
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

    def using(self, endpoint: Endpoint) -> AbstractContextManager[None]:
        """For as long as one request is there."""
        use = self._use(endpoint)
        self._turn += 1
        use.turn = self._turn
        return use

    def running(self, endpoint: Endpoint) -> int:
        return self._use(endpoint).running

    def _use(self, endpoint: Endpoint) -> _Use:
        use = self._uses.get(endpoint)
        if use is None:
            use = self._uses[endpoint] = _Use()
        return use
