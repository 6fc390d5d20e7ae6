"""Which names we answer to and which hosts we connect to: DNS rebinding, cross-site pages and SSRF end here.

A literal address cannot be rebound, so it always passes as a `Host`; a name passes only when it is known. Engines and
coordinators register their own URLs in etcd, so a URL from there is connected to only where its host is loopback or
on the operator's list (`VNPU_ENGINE_HOSTS`), and only under the address it resolved to.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Iterable
from typing import Protocol
from urllib.parse import urlsplit

import msgspec
from multidict import MultiMapping
from yarl import URL

from coordinator.errors import VnpuError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class HostRefused(VnpuError):
    """A URL that etcd names is not one that this process connects to."""


def literal(host: str) -> Address | None:
    """The address that `host` spells, IPv4 in IPv6 unfolded; None: it is a name."""
    try:
        address = ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def is_loopback(host: str) -> bool:
    """Whether a listener on `host` is out of other machines' reach."""
    address = literal(host)
    return address.is_loopback if address is not None else host.lower() == "localhost"


def advertised(url: str) -> str:
    """The URL by which others reach a listener: a wildcard address becomes this machine's name."""
    parsed = URL(url)
    address = literal(parsed.host or "")
    if address is None or not address.is_unspecified:
        return url
    return str(parsed.with_host(socket.gethostname()))


REMEMBERED = 256
"""Hosts that have passed: clients send the same few."""


class Headed(Protocol):
    """A request, whichever server it came to."""

    @property
    def headers(self) -> MultiMapping[str]: ...


class HostGuard:
    """Refuses a request whose `Host` is a name we do not go by, or whose `Origin` is another site."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._names = {"localhost", *(name.lower() for name in names)}
        self._passed: set[str] = set()

    def fault(self, request: Headed) -> str:
        """Why this request is refused with 403; empty: it is not."""
        host = request.headers.getall("Host", [])
        if len(host) != 1 or not (host[0] in self._passed or self._known(host[0])):
            return "the Host header is not a name of this server; use its address, or add the name to VNPU_ENGINE_HOSTS"
        origin = request.headers.get("Origin")
        if origin is not None and origin.lower() not in (f"http://{host[0].lower()}", f"https://{host[0].lower()}"):
            return "requests from other web sites are refused"
        if request.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin"):
            return "requests from other web sites are refused"
        return ""

    def _known(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        known = literal(name) is not None or name in self._names
        if known and len(self._passed) < REMEMBERED:
            self._passed.add(host)
        return known


class Peer(msgspec.Struct, frozen=True):
    """An engine's or coordinator's URL that may be connected to: `base` names the address, `host` the name it had."""

    base: URL
    host: str
    address: tuple[str, int]
    """(IP address, port) of `base`"""


class Peers:
    """Vets URLs that etcd names. `allowed` are names or addresses; loopback always passes."""

    def __init__(self, allowed: Iterable[str] = ()) -> None:
        self._allowed = {host.strip().lower() for host in allowed if host.strip()}

    async def resolve(self, url: str, timeout_s: float = 5.0) -> Peer:
        """The one address behind `url`. Raises HostRefused when it is not plain http://host:port of an allowed host."""
        parsed = self._vet(url)
        host = parsed.host or ""
        address = literal(host) or await self._look_up(host, parsed.port or 80, timeout_s)
        self._check(host, address)
        base = URL.build(scheme="http", host=str(address), port=parsed.port)
        told = (str(address), parsed.port or 80)
        return Peer(base, f"{host}:{parsed.port}" if ":" not in host else f"[{host}]:{parsed.port}", told)

    def _vet(self, url: str) -> URL:
        try:
            parsed = URL(url)
        except (ValueError, TypeError):
            raise _refused(url, "it is not a URL") from None
        if "\\" in url or parsed.scheme != "http" or not parsed.host:
            raise _refused(url, "only http://host:port is connected to")
        if parsed.user is not None or parsed.password is not None:
            raise _refused(url, "it carries a user name")
        if parsed.raw_path not in ("", "/") or parsed.raw_query_string or parsed.raw_fragment:
            raise _refused(url, "it carries a path")
        return parsed

    async def _look_up(self, host: str, port: int, timeout_s: float) -> Address:
        if host.lower() != "localhost" and host.lower() not in self._allowed:
            raise _refused(host, "its host is not allowed")
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(timeout_s):
                found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, TimeoutError) as error:
            raise HostRefused(f"{host} does not resolve: {error!r}", remedy="check the name") from error
        address = literal(str(found[0][4][0]).partition("%")[0])
        if address is None:
            raise _refused(host, "it resolves to no address")
        return address

    def _check(self, host: str, address: Address) -> None:
        if address.is_link_local or address.is_multicast or address.is_unspecified:
            raise _refused(host, f"{address} is never an engine's address")
        listed = host.lower() in self._allowed or str(address) in self._allowed
        if not address.is_loopback and not listed:
            raise _refused(host, "its host is not allowed")


def _refused(what: str, why: str) -> HostRefused:
    return HostRefused(f"{what!r} is refused: {why}", remedy="list the host in VNPU_ENGINE_HOSTS if it is one of yours")
