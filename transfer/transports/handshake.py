"""Who is there: both sides prove that they know a shared key, without sending it. Pure; docs/protocol.md has the bytes.

    client -> server   opening: magic, version, the client's nonce        40 bytes
    server -> client   opening: magic, version, the server's nonce        40 bytes
    client -> server   HMAC-SHA256(key, "vnpu client", service, both openings)   32 bytes
    server -> client   HMAC-SHA256(key, "vnpu server", service, both openings)   32 bytes

Each side draws its nonce afresh, so a recorded proof fits no other connection; the two labels differ, so a proof cannot
be sent back to its maker; the service's name binds it to what is asked for. Sizes are fixed: a stranger makes nobody
allocate. This proves who connects. It does not protect the bytes that follow against somebody who can alter packets
on the way: for that there is TLS (`transports.tls`).
"""

from __future__ import annotations

import hashlib
import hmac
from enum import Enum

from transfer.errors import NotTrusted, PeerViolation

MAGIC = b"VNPU"
VERSION = 1
NONCE = 32
OPENING = len(MAGIC) + 4 + NONCE
PROOF = 32
MIN_KEY = 16
"""A shorter key is refused: whoever has recorded a handshake could guess it offline."""


class Side(Enum):
    """The label in a side's proof."""

    CLIENT = b"vnpu client\0"
    SERVER = b"vnpu server\0"


def opening(nonce: bytes) -> bytes:
    """`OPENING` bytes. Raises ValueError where the nonce is not `NONCE` bytes."""
    if len(nonce) != NONCE:
        raise ValueError(f"a nonce has {NONCE} bytes, not {len(nonce)}")
    return MAGIC + bytes((VERSION, 0, 0, 0)) + nonce


def check_opening(data: bytes) -> None:
    """Raises PeerViolation where these are not the first bytes of this protocol in this version."""
    if len(data) != OPENING or data[: len(MAGIC)] != MAGIC:
        raise PeerViolation("the peer does not speak this protocol", remedy="correct the address: host and port")
    version = data[len(MAGIC)]
    if version != VERSION or any(data[len(MAGIC) + 1 : len(MAGIC) + 4]):
        raise PeerViolation(
            f"the peer speaks version {version}, this is {VERSION}", remedy="run the same vNPU on both sides"
        )


def proof(key: bytes, side: Side, service: bytes, client: bytes, server: bytes) -> bytes:
    """What `side` sends: `PROOF` bytes. `client` and `server` are the two openings.

    Raises:
        ValueError: the key is shorter than `MIN_KEY` bytes.
    """
    if len(key) < MIN_KEY:
        raise ValueError(f"a key of {len(key)} bytes; {MIN_KEY} at least")
    # Lengths are fixed but for the service's, which therefore carries its own.
    text = side.value + len(service).to_bytes(2, "big") + service + client + server
    return hmac.new(key, text, hashlib.sha256).digest()


def check_proof(given: bytes, key: bytes, side: Side, service: bytes, client: bytes, server: bytes) -> None:
    """In constant time. Raises NotTrusted."""
    if not hmac.compare_digest(given, proof(key, side, service, client, server)):
        raise NotTrusted(
            f"the {side.name.lower()} does not know the key, or asks for another service than {service.decode()}",
            remedy="give both sides the same VNPU_TRANSFER_KEY_FILE",
        )
