"""Who is there: the bytes, and what cannot be replayed, reflected or guessed."""

from __future__ import annotations

import pytest

from tests.helpers.wires import KEY, TRUST, meanwhile, soon, two_ends
from transfer.errors import NotTrusted, PeerViolation, TransferError
from transfer.transports import handshake
from transfer.transports.channel import Channel
from transfer.transports.handshake import NONCE, OPENING, PROOF, Side
from transfer.transports.trust import KEY_FILE, Trust, trust_from

SERVICE = b"weights"
CLIENT, SERVER = handshake.opening(bytes(range(32))), handshake.opening(bytes(range(32, 64)))


def test_golden_bytes():
    """On the wire between versions."""
    assert CLIENT.hex() == "564e505501000000" + bytes(range(32)).hex()
    assert (
        handshake.proof(KEY, Side.CLIENT, SERVICE, CLIENT, SERVER).hex()
        == "27caf2a192eae8b65b00e83c7133ff6d2e657c1dd07dbb01e123be6037dcf029"
    )
    assert (
        handshake.proof(KEY, Side.SERVER, SERVICE, CLIENT, SERVER).hex()
        == "99b0c78d0a53bdac072726012a577da48d8bccf208c63397177eb9d653485aa7"
    )


@pytest.mark.parametrize(
    ("key", "side", "service", "client", "server"),
    [
        (KEY[:-1] + b"!", Side.CLIENT, SERVICE, CLIENT, SERVER),
        (KEY, Side.SERVER, SERVICE, CLIENT, SERVER),
        (KEY, Side.CLIENT, b"kv", CLIENT, SERVER),
        (KEY, Side.CLIENT, SERVICE, SERVER, SERVER),
        (KEY, Side.CLIENT, SERVICE, CLIENT, CLIENT),
    ],
    ids=["key", "reflected", "service", "client's nonce", "server's nonce"],
)
def test_a_proof_fits_one_key_side_service_and_pair_of_nonces(
    key: bytes, side: Side, service: bytes, client: bytes, server: bytes
):
    given = handshake.proof(KEY, Side.CLIENT, SERVICE, CLIENT, SERVER)
    handshake.check_proof(given, KEY, Side.CLIENT, SERVICE, CLIENT, SERVER)
    with pytest.raises(NotTrusted):
        handshake.check_proof(given, key, side, service, client, server)


@pytest.mark.parametrize("data", [b"", b"HTTP/1.1 400 Bad Request".ljust(OPENING), CLIENT[:-1], b"\0" + CLIENT[1:]])
def test_another_protocol_is_named(data: bytes):
    with pytest.raises(PeerViolation, match="does not speak"):
        handshake.check_opening(data)


def test_another_version_is_named():
    with pytest.raises(PeerViolation, match="version 2, this is 1"):
        handshake.check_opening(CLIENT[:4] + b"\2" + CLIENT[5:])


def test_a_short_key_is_refused():
    with pytest.raises(NotTrusted, match="openssl"):
        Trust(b"short")
    with pytest.raises(ValueError, match="16 at least"):
        handshake.proof(b"short", Side.CLIENT, SERVICE, CLIENT, SERVER)


def _meet(mine: Trust, theirs: Trust, asked: bytes = SERVICE) -> tuple[Channel, Channel]:
    with two_ends() as (one, other):
        accepted = meanwhile(lambda: theirs.accept(other.socket.dup(), SERVICE, soon()))
        try:
            client = mine.greet(one.socket.dup(), asked, soon())
        finally:
            other.close()
    return client, accepted()


def test_both_sides_with_the_key_meet():
    client, server = _meet(TRUST, TRUST)
    with client, server:
        client.send(b"hello", soon(), tag=7, position=9)
        header, body = server.receive(soon())
    assert (header.tag, header.position, body) == (7, 9, b"hello")


def test_another_key_is_refused_by_the_server():
    with two_ends() as (one, other):
        served = meanwhile(lambda: TRUST.accept(other.socket, SERVICE, soon()))
        with pytest.raises(NotTrusted, match="VNPU_TRANSFER_KEY_FILE"):
            Trust(bytes(32)).greet(one.socket, SERVICE, soon())
        with pytest.raises(NotTrusted):
            served()


def test_another_service_is_refused():
    with two_ends() as (one, other):
        served = meanwhile(lambda: TRUST.accept(other.socket, b"kv", soon()))
        with pytest.raises(NotTrusted):
            TRUST.greet(one.socket, SERVICE, soon())
        with pytest.raises(NotTrusted, match="another service"):
            served()


def test_a_server_that_does_not_know_the_key_is_refused_by_the_client():
    """It may know the protocol and take any proof."""
    with two_ends() as (one, other):

        def impostor() -> None:
            other.receive_raw(OPENING, soon())
            other.send_raw(SERVER, soon())
            other.receive_raw(PROOF, soon())
            other.send_raw(bytes(PROOF), soon())

        ended = meanwhile(impostor)
        with pytest.raises(NotTrusted, match="server does not know"):
            TRUST.greet(one.socket, SERVICE, soon())
        ended()


def test_a_recorded_handshake_opens_nothing():
    """Everything a client sent, sent again."""
    with two_ends() as (one, other):
        recorded = handshake.opening(bytes(NONCE))
        one.send_raw(recorded, soon())
        one.send_raw(handshake.proof(KEY, Side.CLIENT, SERVICE, recorded, SERVER), soon())
        with pytest.raises(NotTrusted):
            TRUST.accept(other.socket, SERVICE, soon())


def test_the_environment_names_a_private_key_file(tmp_path):
    file = tmp_path / "key"
    assert trust_from({}) is None
    with pytest.raises(TransferError, match="make it"):
        trust_from({KEY_FILE: str(file)})
    file.write_bytes(KEY + b"\n")
    file.chmod(0o644)
    with pytest.raises(TransferError, match="chmod 600"):
        trust_from({KEY_FILE: str(file)})
    file.chmod(0o600)
    trust = trust_from({KEY_FILE: str(file)})
    assert trust is not None
    client, server = _meet(TRUST, trust)
    client.close()
    server.close()
    with pytest.raises(TransferError, match="all three"):
        trust_from({KEY_FILE: str(file), "VNPU_TRANSFER_TLS_CA": "x"})


def test_the_key_is_not_shown():
    assert KEY.decode() not in repr(TRUST)
