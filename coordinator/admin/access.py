"""Who may use the operators' API. Every route passes here, also those that only read.

A key is compared in constant time. There are no cookies: a browser has nothing to send along on its own. Without a key
the API listens on loopback only, and then the checks of Host and Origin keep other sites' pages out.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Iterable

from aiohttp import web

from coordinator.errors import ConfigError
from coordinator.gateway.problem import Problem
from coordinator.hosts import HostGuard, is_loopback


class Access:
    """The rules for one listener. Raises ConfigError for a listener that anybody could reach."""

    def __init__(self, host: str, api_key: str, names: Iterable[str] = ()) -> None:
        if not api_key and not is_loopback(host):
            raise ConfigError(
                f"admin.listen: {host} is reachable from other machines and no key protects it",
                remedy="set admin.api_key (or VNPU_ADMIN_KEY), or listen on 127.0.0.1",
            )
        self._guard = HostGuard((host, *names))
        self._needed = bool(api_key)
        self._mask = secrets.token_bytes(32)
        self._wanted = self._digest(api_key)

    def check(self, request: web.BaseRequest) -> None:
        """Raises Problem: 403 for a foreign Host or Origin, 401 without the key, 415 for a body that is not JSON."""
        if fault := self._guard.fault(request):
            raise Problem(403, "forbidden", fault)
        if self._needed and not hmac.compare_digest(self._digest(_bearer(request)), self._wanted):
            raise Problem(401, "unauthorized", "send the admin key as `Authorization: Bearer KEY`")
        if request.body_exists and request.content_type != "application/json":
            raise Problem(415, "not_json", "send the body as application/json")

    def _digest(self, key: str) -> bytes:
        """Equal length whatever is compared, so that not even the key's length shows in the time it takes."""
        return hmac.digest(self._mask, key.encode("utf-8", "surrogateescape"), "sha256")


def _bearer(request: web.BaseRequest) -> str:
    given = request.headers.getall("Authorization", [])
    if len(given) != 1:
        return ""
    scheme, _, key = given[0].partition(" ")
    return key.strip() if scheme.lower() == "bearer" else ""
