"""Who may use the operators' API. Every route passes here, also those that only read.

There are no cookies: a browser has nothing to send along on its own. Without any key the API listens on loopback only,
and then the checks of Host and Origin keep other sites' pages out. Only the web page's own files are open to whoever
passes these: they hold no data, and a browser can send no key with them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

from aiohttp import web

from coordinator.admin.keyring import Caller, Role, find, known_keys
from coordinator.errors import ConfigError
from coordinator.gateway.problem import Problem
from coordinator.hosts import HostGuard, is_loopback

log = logging.getLogger("coordinator.admin.audit")

ANYBODY = Caller("somebody on this machine", Role.OPERATE)
"""Where no key is configured."""
NOBODY = Caller("nobody", Role.READ)
READS = ("GET", "HEAD")
LONGEST = 256
Roles = Mapping[str, Mapping[str, str]]


class Access:
    """The rules for one listener. Raises ConfigError for a listener that anybody could reach."""

    def __init__(self, host: str, api_key: str, names: Iterable[str] = (), roles: Roles | None = None) -> None:
        self._host = host
        self._guard = HostGuard((host, *names))
        self.change(api_key, roles or {})

    def change(self, api_key: str, roles: Roles) -> None:
        """These keys and no others from now on. Raises ConfigError as the constructor does."""
        keys = known_keys(api_key, roles)
        if not keys and not is_loopback(self._host):
            raise ConfigError(
                f"admin.listen: {self._host} is reachable from other machines and no key protects it",
                remedy="set admin.api_key (or VNPU_ADMIN_KEY), or listen on 127.0.0.1",
            )
        self._keys = keys

    def guard(self, request: web.BaseRequest) -> None:
        """Raises Problem (403) for a foreign Host or Origin."""
        if fault := self._guard.fault(request):
            raise Problem(403, "forbidden", fault)

    def check(self, request: web.BaseRequest) -> Caller:
        """Who asks. Raises Problem: as `guard`, 401 without a key, 403 with one that only reads, 415 for a body that
        is not JSON."""
        self.guard(request)
        caller = find(self._keys, _bearer(request)) if self._keys else ANYBODY
        if caller is None:
            raise Problem(401, "unauthorized", "send the admin key as `Authorization: Bearer KEY`")
        if caller.role is not Role.OPERATE and request.method not in READS:
            raise Problem(403, "read_only", f"the key of {caller.name} only reads; this takes one with role operate")
        if request.body_exists and request.content_type != "application/json":
            raise Problem(415, "not_json", "send the body as application/json")
        return caller

    def audit(self, request: web.BaseRequest, status: int, via: str) -> None:
        """One line a command, obeyed or refused: who, from where, what, with what result. The path is as it was sent,
        percent-escaped, so nothing in it breaks the line."""
        caller = find(self._keys, _bearer(request)) or NOBODY if self._keys else ANYBODY
        through = f" through {via[:LONGEST]!r}" if via else ""
        log.info(
            "%s (%s) from %s%s: %s %s -> %d",
            caller.name, caller.role, request.remote, through, request.method, request.raw_path[:LONGEST], status,
        )  # fmt: skip


def _bearer(request: web.BaseRequest) -> str:
    given = request.headers.getall("Authorization", [])
    if len(given) != 1:
        return ""
    scheme, _, key = given[0].partition(" ")
    return key.strip() if scheme.lower() == "bearer" else ""
