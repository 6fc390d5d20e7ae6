"""Who may use the gateway: holders of a key, where there are keys. Without any it listens on loopback only."""

from __future__ import annotations

from collections.abc import Mapping

from coordinator.admin.keyring import Key, Role, find, named_keys
from coordinator.errors import ConfigError
from coordinator.gateway.problem import Problem
from coordinator.hosts import Headed, is_loopback

Keys = Mapping[str, str]
"""Hashes of keys, by their holders' names."""


class Access:
    """The rules for one listener. Raises ConfigError for one that anybody could reach."""

    def __init__(self, host: str, keys: Keys) -> None:
        self._host = host
        self._keys: list[Key] = []
        self.change(keys)

    def vet(self, keys: Keys) -> None:
        """Raises ConfigError where this listener would be open to anybody with `keys`."""
        if not keys and not is_loopback(self._host):
            raise ConfigError(
                f"gateway.listen: {self._host} is reachable from other machines and no key protects it",
                remedy="set gateway.api_keys (or VNPU_API_KEY), or listen on 127.0.0.1",
            )

    def change(self, keys: Keys) -> None:
        """These keys and no others from now on; running requests go on. Raises as `vet`, and then nothing changes."""
        self.vet(keys)
        self._keys = named_keys(Role.READ, keys)

    @property
    def keyed(self) -> bool:
        return bool(self._keys)

    def check(self, request: Headed) -> str:
        """The name of whoever asks; empty: no key is asked for. Raises Problem (401)."""
        if not self._keys:
            return ""
        caller = find(self._keys, _given(request).encode("utf-8", "replace").decode())
        if caller is None:
            raise Problem(401, "invalid_api_key", "send a key of this gateway as `Authorization: Bearer KEY`")
        return caller.name


def _given(request: Headed) -> str:
    """The one key that was sent: OpenAI's clients send a bearer, Anthropic's `x-api-key`."""
    bearers = request.headers.getall("Authorization", [])
    plain = request.headers.getall("X-Api-Key", [])
    if len(bearers) + len(plain) != 1:
        return ""
    if plain:
        return plain[0].strip()
    scheme, _, key = bearers[0].partition(" ")
    return key.strip() if scheme.lower() == "bearer" else ""
