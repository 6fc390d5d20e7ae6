"""Who holds which key, and what it opens. Keys are kept as digests: whoever reads the configuration, a core dump or a
backup of it cannot use them.

A key is 256 random bits (`vnpu key`), so one round of SHA-256 is as good as any slow hash: there is nothing to guess.
Every known digest is compared, each in constant time, whatever matches.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable, Mapping
from enum import StrEnum

import msgspec

PREFIX = "sha256:"
HASH = re.compile(r"sha256:[0-9a-f]{64}")
OWNER = "admin"
"""The name of whoever holds `admin.api_key`."""


class Role(StrEnum):
    """`read` opens what only reads; `operate` everything."""

    READ = "read"
    OPERATE = "operate"


class Caller(msgspec.Struct, frozen=True):
    """Who asks, as the audit names them."""

    name: str
    role: Role


class Key(msgspec.Struct, frozen=True):
    caller: Caller
    digest: bytes

    def __repr__(self) -> str:
        return f"Key({self.caller.name})"


def new_key() -> str:
    """256 random bits, easily told from other secrets."""
    return f"vnpu_{secrets.token_urlsafe(32)}"


def hash_key(key: str) -> str:
    """As it stands in the configuration; a hash is itself."""
    if HASH.fullmatch(key):
        return key
    return PREFIX + hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def known_keys(api_key: str, roles: Mapping[str, Mapping[str, str]]) -> list[Key]:
    """All keys of a configuration: `admin.api_key` (a key or its hash), and hashes by role and holder."""
    given = [(OWNER, Role.OPERATE, api_key)] if api_key else []
    own = [Key(Caller(name, role), _digest(hash_key(hashed))) for name, role, hashed in given]
    return own + [key for role, keys in roles.items() for key in named_keys(Role(role), keys)]


def named_keys(role: Role, keys: Mapping[str, str]) -> list[Key]:
    """Keys of one role; `keys` are hashes by the holders' names."""
    return [Key(Caller(name, role), _digest(hash_key(hashed))) for name, hashed in keys.items()]


def find(keys: Iterable[Key], given: str) -> Caller | None:
    """Whose key it is; None: nobody's."""
    digest = _digest(hash_key("key:" + given) if HASH.fullmatch(given) else hash_key(given))
    found = None
    for key in keys:
        if hmac.compare_digest(key.digest, digest):
            found = key.caller
    return found


def _digest(hashed: str) -> bytes:
    return bytes.fromhex(hashed.removeprefix(PREFIX))
