"""To a listening engine: connect and prove, within one deadline."""

from __future__ import annotations

import socket

from transfer.errors import PeerLost
from transfer.transports.channel import Channel
from transfer.transports.deadline import Deadline
from transfer.transports.trust import Trust


def dial(host: str, port: int, trust: Trust, service: bytes, deadline: Deadline) -> Channel:
    """A channel to `service` at `host:port` (IPv4, IPv6 or a name). The caller closes it.

    Raises:
        PeerLost: nobody listens there, or no answer before the deadline.
        NotTrusted: the peer does not know the key, or says that we do not.
        PeerViolation: something else listens there.
    """
    try:
        sock = socket.create_connection((host, port), timeout=deadline.left())
    except OSError as error:
        raise PeerLost(f"{host}:{port}: {error}", remedy="see whether the engine there is alive") from error
    return trust.greet(sock, service, deadline, host)


def split_address(text: str) -> tuple[str, int]:
    """`host:port` or `[v6]:port`. Raises ValueError, which says what is wrong."""
    host, _, port = text.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    if not bare or (":" in bare) != (bare != host) or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError(f"{text!r} is no host:port; write e.g. 10.0.0.7:29000 or [fd00::7]:29000")
    return bare, int(port)
