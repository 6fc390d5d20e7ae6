"""Truth about intent: a small key-value interface with etcd's semantics, on real etcd or in memory."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from coordinator.store.etcd import EtcdStore


def connect(
    endpoints: Sequence[str],
    *,
    user: str | None = None,
    password: str | None = None,
    ca: Path | None = None,
    cert: Path | None = None,
    key: Path | None = None,
    call_timeout: float = 5.0,
    stall: float = 5.0,
    vetted: bool = False,
    environ: Mapping[str, str] = os.environ,
) -> EtcdStore:
    """The store at these etcd endpoints (`http[s]://[user:password@]host:port`); opens no connection yet.

    What is not given comes from the URL, then from `VNPU_ETCD_USER`, `_PASSWORD`, `_CA`, `_CERT`, `_KEY`. No call takes
    longer than `call_timeout` seconds; a watch that hears nothing for `stall` seconds is opened anew. `vetted`: for
    whoever relies on what etcd says: no member is called whose version must not be used, as `VNPU_ETCD_CHECK` has it
    (`store.floor`); calls then raise `ConfigError`. Call it before the event loop is busy: it imports etcd3-py (0.3 s).
    Raises `ConfigError` for endpoints or files it cannot use.
    """
    # etcd3-py brings requests and pyOpenSSL along: only a process that talks to etcd pays for them.
    from coordinator.store.access import access_from
    from coordinator.store.etcd import EtcdStore
    from coordinator.store.floor import Check, check_of

    access = access_from(endpoints, environ, user=user, password=password, ca=ca, cert=cert, key=key)
    check = check_of(environ) if vetted else Check.OFF
    return EtcdStore.at(access, call_timeout=call_timeout, stall=stall, check=check)
