"""What two engines must share before bytes flow: a key, and TLS certificates where the network is not trusted."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import socket
import ssl
from collections.abc import Mapping
from pathlib import Path

from transfer.errors import NotTrusted, PeerLost, TransferError
from transfer.transports import handshake
from transfer.transports.channel import Channel
from transfer.transports.deadline import Deadline
from transfer.transports.handshake import NONCE, OPENING, PROOF, Side

KEY_FILE = "VNPU_TRANSFER_KEY_FILE"
TLS_CERT, TLS_KEY, TLS_CA = "VNPU_TRANSFER_TLS_CERT", "VNPU_TRANSFER_TLS_KEY", "VNPU_TRANSFER_TLS_CA"


class Trust:
    """`key`: the shared secret. With `server` and `client` contexts the connection is TLS, both sides with
    certificates of one authority."""

    def __init__(
        self, key: bytes, *, server: ssl.SSLContext | None = None, client: ssl.SSLContext | None = None
    ) -> None:
        """Raises NotTrusted where the key is too short."""
        if len(key) < handshake.MIN_KEY:
            raise NotTrusted(
                f"the transfer key has {len(key)} bytes", remedy=f"{handshake.MIN_KEY} at least: openssl rand -hex 32"
            )
        self._key = key
        self._server = server
        self._client = client

    def __repr__(self) -> str:
        return f"Trust(tls={'on' if self._server else 'off'})"

    def mac(self, label: bytes, data: bytes) -> bytes:
        """32 bytes that only who has the key can make, for this purpose and this content (HMAC-SHA256)."""
        return hmac.new(self._key, label + b"\0" + data, hashlib.sha256).digest()

    def is_mac(self, given: bytes, label: bytes, data: bytes) -> bool:
        """In constant time."""
        return hmac.compare_digest(given, self.mac(label, data))

    def accept(self, sock: socket.socket, service: bytes, deadline: Deadline) -> Channel:
        """The server's side of the handshake; the socket is closed where it fails.

        Raises:
            NotTrusted, PeerViolation, PeerLost: the client is none of ours, or silent.
        """
        channel = Channel(self._wrap(sock, self._server, deadline, server_side=True))
        try:
            theirs = channel.receive_raw(OPENING, deadline)
            handshake.check_opening(theirs)
            mine = handshake.opening(secrets.token_bytes(NONCE))
            channel.send_raw(mine, deadline)
            given = channel.receive_raw(PROOF, deadline)
            handshake.check_proof(given, self._key, Side.CLIENT, service, theirs, mine)
            channel.send_raw(handshake.proof(self._key, Side.SERVER, service, theirs, mine), deadline)
        except BaseException:
            channel.close()
            raise
        return channel

    def greet(self, sock: socket.socket, service: bytes, deadline: Deadline, name: str = "") -> Channel:
        """The client's side. `name`: the host that was dialled, for TLS. Raises as `accept`."""
        channel = Channel(self._wrap(sock, self._client, deadline, name=name))
        try:
            mine = handshake.opening(secrets.token_bytes(NONCE))
            channel.send_raw(mine, deadline)
            theirs = channel.receive_raw(OPENING, deadline)
            handshake.check_opening(theirs)
            channel.send_raw(handshake.proof(self._key, Side.CLIENT, service, mine, theirs), deadline)
            given = self._proof(channel, deadline)
            handshake.check_proof(given, self._key, Side.SERVER, service, mine, theirs)
        except BaseException:
            channel.close()
            raise
        return channel

    @staticmethod
    def _proof(channel: Channel, deadline: Deadline) -> bytes:
        try:
            return channel.receive_raw(PROOF, deadline)
        except PeerLost as error:
            raise NotTrusted(
                f"the server ended the handshake: {error}", remedy=f"give both sides the same {KEY_FILE}"
            ) from error

    @staticmethod
    def _wrap(
        sock: socket.socket,
        context: ssl.SSLContext | None,
        deadline: Deadline,
        *,
        server_side: bool = False,
        name: str = "",
    ) -> socket.socket:
        if context is None:
            return sock
        try:
            sock.settimeout(deadline.left())
            return context.wrap_socket(sock, server_side=server_side, server_hostname=None if server_side else name)
        except ssl.SSLError as error:
            sock.close()
            raise NotTrusted(f"TLS: {error}", remedy="both sides need certificates of one authority") from error
        except OSError as error:
            sock.close()
            raise PeerLost(f"TLS: {error}") from error


def trust_from(environ: Mapping[str, str] = os.environ) -> Trust | None:
    """What the environment says; None: no key, so nothing is served and nobody is asked.

    Raises:
        TransferError: a file cannot be used; the message names the variable.
    """
    name = environ.get(KEY_FILE)
    if not name:
        return None
    file = Path(name)
    try:
        if file.stat().st_mode & 0o077:
            raise TransferError(f"{KEY_FILE}={name} can be read by others", remedy=f"chmod 600 {name}")
        key = file.read_bytes().strip()
    except OSError as error:
        raise TransferError(f"{KEY_FILE}={name}: {error}", remedy="make it: openssl rand -hex 32") from error
    files = [environ.get(one) for one in (TLS_CERT, TLS_KEY, TLS_CA)]
    if not any(files):
        return Trust(key)
    cert, private, authority = files
    if not (cert and private and authority):
        raise TransferError(f"TLS needs {TLS_CERT}, {TLS_KEY} and {TLS_CA}", remedy="set all three, or none")
    return Trust(key, **contexts(Path(cert), Path(private), Path(authority)))


def contexts(cert: Path, private: Path, authority: Path) -> dict[str, ssl.SSLContext]:
    """TLS 1.3 contexts for both sides, each asking the other for a certificate of `authority`.

    Raises:
        TransferError: a file is missing or is no certificate.
    """
    made = {}
    for side, protocol in (("server", ssl.PROTOCOL_TLS_SERVER), ("client", ssl.PROTOCOL_TLS_CLIENT)):
        context = ssl.SSLContext(protocol)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.verify_mode = ssl.CERT_REQUIRED
        try:
            context.load_verify_locations(authority)
            context.load_cert_chain(cert, private)
        except (OSError, ssl.SSLError) as error:
            raise TransferError(f"TLS: {error}", remedy=f"correct {TLS_CERT}, {TLS_KEY}, {TLS_CA}") from error
        made[side] = context
    return made
