"""Listening and dialling over TCP: strangers, a taken port, TLS, the end."""

from __future__ import annotations

import socket
import ssl
import threading
from pathlib import Path

import pytest

from tests.helpers.certificates import Authority
from tests.helpers.eventually import eventually
from tests.helpers.wires import KEY, TRUST, meanwhile, soon
from transfer.errors import NotTrusted, PeerLost, TransferError
from transfer.transports.channel import Channel
from transfer.transports.deadline import Deadline
from transfer.transports.dial import dial, split_address
from transfer.transports.listener import Listener
from transfer.transports.trust import Trust, contexts

LOCAL = "127.0.0.1"
SERVICE = b"weights"


def echo(channel: Channel) -> None:
    while True:
        _, body = channel.receive(soon())
        channel.send(body, soon())


def ask(port: int, trust: Trust = TRUST, host: str = LOCAL) -> bytes:
    with dial(host, port, trust, SERVICE, soon()) as channel:
        channel.send(b"hello", soon())
        return channel.receive(soon())[1]


def test_many_clients_at_once():
    barrier = threading.Barrier(8)

    def serve(channel: Channel) -> None:
        barrier.wait(30)  # passes only when all eight are served at the same time
        echo(channel)

    with Listener(LOCAL, 0, TRUST, SERVICE, serve) as listener:
        answers = [meanwhile(lambda: ask(listener.port)) for _ in range(8)]
        assert [answer() for answer in answers] == [b"hello"] * 8


def test_silent_and_garbage_clients_harm_nobody():
    with Listener(LOCAL, 0, TRUST, SERVICE, echo) as listener:
        with socket.create_connection((LOCAL, listener.port)), socket.create_connection((LOCAL, listener.port)) as b:
            b.sendall(b"\xff" * 4096)
            assert ask(listener.port) == b"hello"
        with pytest.raises(NotTrusted):
            ask(listener.port, Trust(bytes(32)))
        assert ask(listener.port) == b"hello"


async def test_a_client_that_went_is_forgotten():
    with Listener(LOCAL, 0, TRUST, SERVICE, echo, clients=1) as listener:
        assert ask(listener.port) == b"hello"
        assert ask(listener.port) == b"hello"
        await eventually(lambda: listener.clients == 0)


def test_a_taken_port_is_named():
    with (
        Listener(LOCAL, 0, TRUST, SERVICE, echo) as listener,
        pytest.raises(TransferError, match=f"{listener.port}.*another port"),
    ):
        Listener(LOCAL, listener.port, TRUST, SERVICE, echo)


def test_stop_breaks_what_is_open_and_nobody_listens_any_more():
    with Listener(LOCAL, 0, TRUST, SERVICE, echo) as listener, dial(LOCAL, listener.port, TRUST, SERVICE, soon()) as c:
        c.send(b"x", soon())
        c.receive(soon())
        listener.stop()
        with pytest.raises(PeerLost):
            c.receive(soon())
        with pytest.raises(PeerLost, match="alive"):
            ask(listener.port)
    assert listener.clients == 0


def test_a_server_that_never_answers_the_handshake():
    with socket.create_server((LOCAL, 0)) as mute, pytest.raises((NotTrusted, PeerLost)):
        dial(LOCAL, mute.getsockname()[1], TRUST, SERVICE, Deadline.after(0.05))


def test_ipv6():
    with Listener("::1", 0, TRUST, SERVICE, echo) as listener:
        assert ask(listener.port, host="::1") == b"hello"


def tls(folder: Path) -> Trust:
    folder.mkdir()
    authority = Authority(folder)
    cert, key = authority.client_files
    return Trust(KEY, **contexts(cert, key, authority.ca_file))


def test_tls_with_certificates_of_one_authority(tmp_path: Path):
    trust = tls(tmp_path / "one")
    with Listener(LOCAL, 0, trust, SERVICE, echo) as listener:
        assert ask(listener.port, trust) == b"hello"
        with pytest.raises(TransferError):
            ask(listener.port, tls(tmp_path / "other"))
        with pytest.raises(TransferError):
            ask(listener.port)  # without TLS
        assert ask(listener.port, trust) == b"hello"


def test_tls_without_a_certificate_is_refused_though_the_key_is_right(tmp_path: Path):
    authority = Authority(tmp_path)
    both = contexts(*authority.client_files, authority.ca_file)
    bare = ssl.create_default_context(cafile=authority.ca_file)
    with Listener(LOCAL, 0, Trust(KEY, **both), SERVICE, echo) as listener:
        with pytest.raises(TransferError):
            ask(listener.port, Trust(KEY, server=both["server"], client=bare))
        assert ask(listener.port, Trust(KEY, **both)) == b"hello"


def test_tls_files_are_checked(tmp_path: Path):
    with pytest.raises(TransferError, match="VNPU_TRANSFER_TLS_CERT"):
        contexts(tmp_path / "no", tmp_path / "such", tmp_path / "file")


@pytest.mark.parametrize(
    ("text", "address"), [("10.0.0.7:29000", ("10.0.0.7", 29000)), ("[fd00::7]:1", ("fd00::7", 1))]
)
def test_addresses(text: str, address: tuple[str, int]):
    assert split_address(text) == address


@pytest.mark.parametrize("text", ["", "host", "host:", ":1", "fd00::7:1", "h:65536", "h:-1", "[h]:1"])
def test_what_is_no_address(text: str):
    with pytest.raises(ValueError, match="host:port"):
        split_address(text)
