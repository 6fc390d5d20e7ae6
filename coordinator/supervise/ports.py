"""Loopback ports: which are free, and whether we may listen where we are told."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Collection

from coordinator.errors import ConfigError


def free_port(taken: Collection[int]) -> int:
    """A port of 127.0.0.1 that nobody listens on now, not in `taken`; another process may still be faster to it."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        if port not in taken:
            return port


def check_free(host: str, port: int, key: str) -> None:
    """Raises ConfigError naming `key` where `host:port` cannot be listened on. Port 0 always can."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        why = "is taken by another process" if taken else f"cannot be listened on: {os.strerror(error.errno or 0)}"
        raise ConfigError(f"{key}: {host}:{port} {why}", remedy="stop that process, or choose another port") from None
