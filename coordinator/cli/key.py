"""`vnpu key`: a key for the admin API or the gateway, and the hash of it that the configuration holds."""

from __future__ import annotations

import json
import sys

from coordinator.admin.keyring import hash_key, new_key
from coordinator.errors import ConfigError

SHORTEST = 20
"""Characters. A single round of SHA-256 protects what cannot be guessed, and only that."""


def key(*, given: bool, as_json: bool) -> int:
    """`given`: hash the key that stands on standard input. Raises ConfigError for one that could be guessed."""
    made = sys.stdin.readline().strip() if given else new_key()
    if len(made) < SHORTEST:
        raise ConfigError(f"a key has at least {SHORTEST} characters", remedy="let `vnpu key` make one")
    if as_json:
        print(json.dumps({"hash": hash_key(made)} if given else {"key": made, "hash": hash_key(made)}))
    elif given:
        print(hash_key(made))
    else:
        print(f"key:  {made}\nhash: {hash_key(made)}")
    return 0
