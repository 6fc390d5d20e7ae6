"""Loopback ports: which are free, and whether we may listen where we are told."""

from __future__ import annotations

import errno
import socket
from collections.abc import Collection

from coordinator.errors import ConfigError


def free_port(taken: Collection[int] = ()) -> int:
    """A port of 127.0.0.1, not in `taken`, that the kernel hands to nobody else for a minute: a connection to it was
    just closed from its own side, so only who names it and sets SO_REUSEADDR, as servers do, may bind it (tcp(7):
    TIME_WAIT). A process that starts slowly finds it still free."""
    while True:
        with socket.create_server(("127.0.0.1", 0)) as door, socket.create_connection(door.getsockname()) as caller:
            accepted, address = door.accept()
            accepted.close()
            if address != caller.getsockname():
                continue  # a stranger came first
            caller.recv(1)  # the end: the other side was closed first
            port: int = door.getsockname()[1]
        if port not in taken:
            return port


def check_free(host: str, port: int, key: str) -> None:
    """Raises ConfigError naming `key` where `host:port` cannot be listened on, or `host` is no address of this
    machine. May ask a name server."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except (OSError, UnicodeError) as error:
        why, remedy = _fault(error)
        raise ConfigError(f"{key}: {host}:{port} {why}", remedy=remedy) from None


def _fault(error: OSError | UnicodeError) -> tuple[str, str]:
    """What is wrong, and what to do about it."""
    address = "write an address of this machine, as 127.0.0.1, or 0.0.0.0 for all"
    if isinstance(error, (socket.gaierror, UnicodeError)):
        return f"cannot be listened on: the host's name is not known ({error.args[-1]})", address
    if error.errno == errno.EADDRNOTAVAIL:
        return "cannot be listened on: the host is not this machine", address
    if error.errno == errno.EADDRINUSE:
        return "is taken by another process", "stop that process, or choose another port"
    if error.errno == errno.EACCES:
        return "cannot be listened on: that needs privileges", "choose a port above 1023"
    return f"cannot be listened on: {error.strerror}", "choose another address"
