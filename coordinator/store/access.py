"""Where etcd is and how to get in: endpoints, user, TLS, from arguments, URLs and the environment."""

from __future__ import annotations

import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit

from coordinator.errors import ConfigError

DEFAULT_PORT = 2379


@dataclass(frozen=True)
class Endpoint:
    """One member's client URL, without credentials."""

    scheme: str
    host: str
    port: int

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.host}:{self.port}"


@dataclass(frozen=True)
class Access:
    """All that a transport needs; the password shows in no repr."""

    endpoints: tuple[Endpoint, ...]
    user: str = ""
    password: str = field(default="", repr=False)
    tls: ssl.SSLContext | None = field(default=None, repr=False)


def access_from(
    endpoints: Sequence[str],
    environ: Mapping[str, str],
    *,
    user: str | None = None,
    password: str | None = None,
    ca: Path | None = None,
    cert: Path | None = None,
    key: Path | None = None,
) -> Access:
    """What an argument does not say, a URL says, then `VNPU_ETCD_USER`, `_PASSWORD`, `_CA`, `_CERT`, `_KEY`.

    etcd's gateway takes no user from a client certificate: with etcd's auth, user and password are needed. Raises
    `ConfigError` for what cannot be used.
    """
    urls = [_split(endpoint) for endpoint in endpoints]
    if not urls:
        raise ConfigError("no etcd endpoint given", remedy="set VNPU_ETCD_ENDPOINTS, e.g. http://127.0.0.1:2379")
    named = next((url for url in urls if url.username), None)
    user = user or _part(named and named.username) or environ.get("VNPU_ETCD_USER", "")
    password = password or _part(named and named.password) or environ.get("VNPU_ETCD_PASSWORD", "")
    if user and not password:
        raise ConfigError(f"etcd user {user!r} has no password", remedy="set VNPU_ETCD_PASSWORD")
    tls = None
    if any(url.scheme == "https" for url in urls):
        tls = _tls(
            ca or _path(environ, "VNPU_ETCD_CA"),
            cert or _path(environ, "VNPU_ETCD_CERT"),
            key or _path(environ, "VNPU_ETCD_KEY"),
        )
    return Access(tuple(_endpoint(url) for url in urls), user, password, tls)


def credentials_apart(endpoints: Sequence[str]) -> tuple[tuple[str, ...], dict[str, str]]:
    """The endpoints without user and password, and these as environment variables: everybody on a machine may read
    command lines, and screens are no place for them. Raises `ConfigError` as `access_from`."""
    urls = [_split(endpoint) for endpoint in endpoints]
    named = next((url for url in urls if url.username), None)
    bare = (_endpoint(url).url if url.username else given for url, given in zip(urls, endpoints, strict=True))
    said = {"VNPU_ETCD_USER": named and named.username, "VNPU_ETCD_PASSWORD": named and named.password}
    return tuple(bare), {name: _part(text) for name, text in said.items() if text}


def _split(endpoint: str) -> SplitResult:
    text = endpoint if "://" in endpoint else f"http://{endpoint}"
    shown = text.rpartition("@")[2]  # never echo a password
    remedy = "write http[s]://host:port"
    try:
        url = urlsplit(text)
        port_is_sane = url.port is None or url.port > 0
    except ValueError:
        raise ConfigError(f"etcd endpoint {shown!r} is no URL", remedy=remedy) from None
    if url.scheme not in ("http", "https") or not url.hostname or not port_is_sane:
        raise ConfigError(f"etcd endpoint {shown!r} is no http or https URL", remedy=remedy)
    if url.path not in ("", "/") or url.query or url.fragment:
        raise ConfigError(f"etcd endpoint {shown!r} has a path", remedy=remedy)
    return url


def _endpoint(url: SplitResult) -> Endpoint:
    host = url.hostname or ""
    return Endpoint(url.scheme, f"[{host}]" if ":" in host else host, url.port or DEFAULT_PORT)


def _part(text: str | None) -> str:
    return unquote(text) if text else ""


def _path(environ: Mapping[str, str], name: str) -> Path | None:
    return Path(environ[name]) if environ.get(name) else None


def _tls(ca: Path | None, cert: Path | None, key: Path | None) -> ssl.SSLContext:
    """Raises `ConfigError`, naming the file."""
    try:
        context = ssl.create_default_context(cafile=ca)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"etcd's CA file {ca}: {error}", remedy="give a PEM file") from None
    if key and not cert:
        raise ConfigError("a key for etcd, but no certificate", remedy="set VNPU_ETCD_CERT too")
    if cert:
        try:
            context.load_cert_chain(cert, key)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(
                f"etcd's client certificate {cert}, key {key}: {error}", remedy="give PEM files"
            ) from None
    return context
