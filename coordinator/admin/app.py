"""The operators' API, put together."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from types import TracebackType

import msgspec

from coordinator.admin.access import Access
from coordinator.admin.feed import Feed
from coordinator.admin.handlers import Core, Handlers
from coordinator.admin.leader import Leader
from coordinator.hosts import Peers
from coordinator.listener import Listener
from coordinator.store.base import Store

log = logging.getLogger(__name__)

DRAIN_S = 2.0


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """`trusted_hosts` are names we go by and hosts we connect to; `api_key` is a key or its hash, `roles` hashes by
    role and holder."""

    host: str = "127.0.0.1"
    port: int = 8081
    api_key: str = ""
    roles: Mapping[str, Mapping[str, str]] = {}
    trusted_hosts: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"Settings(host={self.host!r}, port={self.port}, api_key={'set' if self.api_key else 'none'})"


class Admin:
    """Use it by `async with`. Raises ConfigError for a listener that anybody could reach."""

    def __init__(self, settings: Settings, core: Core, store: Store, feed: Feed) -> None:
        self._access = Access(settings.host, settings.api_key, settings.trusted_hosts, settings.roles)
        leader = Leader(store, core.id, Peers(settings.trusted_hosts))
        self._feed = feed
        app = Handlers(core, store, self._access, feed, leader).application()
        self._listener = Listener(app, settings.host, settings.port, DRAIN_S)

    async def __aenter__(self) -> Admin:
        """Listens. Raises OSError when the address cannot be listened on."""
        await self._listener.start()
        log.info("admin API listens on %s", self.url)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._feed.end()
        await self._listener.close()

    def change_keys(self, api_key: str, roles: Mapping[str, Mapping[str, str]]) -> None:
        """These keys and no others from now on. Raises ConfigError where the listener would be open to anybody."""
        self._access.change(api_key, roles)

    @property
    def url(self) -> str:
        return self._listener.url
