"""Where we may listen, and what is said where we may not."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from coordinator.errors import ConfigError
from coordinator.supervise.ports import check_free, free_port


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port: int = listener.getsockname()[1]
        yield port


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0"])
def test_a_free_port_may_be_listened_on(host: str) -> None:
    check_free(host, 0, "x")
    check_free(host, free_port(()), "x")


def test_a_free_port_is_given_to_nobody_who_does_not_name_it() -> None:
    port = free_port()
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind(("127.0.0.1", port))
    with socket.create_server(("127.0.0.1", port)) as server:  # as servers do: with SO_REUSEADDR
        assert server.getsockname()[1] == port


def test_a_free_port_is_none_of_those_that_are_taken() -> None:
    ports: set[int] = set()
    for _ in range(20):
        ports.add(free_port(ports))
    assert len(ports) == 20


def test_a_port_that_is_taken_is_named(taken: int) -> None:
    with pytest.raises(ConfigError, match=rf"^f: k: 127.0.0.1:{taken} is taken by another process .*another port"):
        check_free("127.0.0.1", taken, "f: k")


@pytest.mark.parametrize("host", ["no-such-host.invalid", "x" * 64 + ".invalid", "a..b"])
def test_a_host_that_nobody_knows_is_named(host: str) -> None:
    with pytest.raises(ConfigError, match=r"the host's name is not known .*write an address of this machine") as caught:
        check_free(host, 8080, "f: k")
    assert "Unknown error" not in str(caught.value)


def test_another_machines_address_is_named() -> None:
    with pytest.raises(ConfigError, match="the host is not this machine"):
        check_free("192.0.2.1", 8080, "f: k")
