"""What an agent needs to see of etcd, and nothing else: other engines' keys pass by undecoded."""

from __future__ import annotations

import logging

from coordinator.core.events import DeviceSeen, EpochSeen, TokenSeen
from coordinator.core.model import Daemon, Device, Token
from coordinator.errors import SchemaError
from coordinator.store import facts, keys
from coordinator.store.base import Change, Changes, Listing
from coordinator.store.codec import decode
from engine_patch.events import Held

log = logging.getLogger("vllm.vnpu.agent")


class View:
    """Fed with what `coordinator.store.follow` yields. A value that does not decode counts as gone."""

    def __init__(self, node: str, devices: tuple[str, ...]) -> None:
        self.epoch: str | None = None
        self.daemon: Daemon | None = None
        self.devices: dict[str, Device] = {}
        self._tokens: dict[str, tuple[Token, int]] = {}
        self._daemon_key = keys.daemon(node)
        mine = [spell(device) for device in devices for spell in (keys.token, keys.device)]
        self._watched = frozenset([keys.EPOCH, self._daemon_key, *mine])

    @property
    def tokens(self) -> tuple[Held, ...]:
        return tuple(Held(device, token, revision) for device, (token, revision) in self._tokens.items())

    def apply(self, news: Listing | Changes) -> bool:
        """True where it tells something about this engine's world."""
        if isinstance(news, Listing):
            self.epoch, self.daemon = None, None
            self.devices.clear()
            self._tokens.clear()
            changes = [Change(kv.key, kv, kv.mod_revision) for kv in news.kvs]
        else:
            changes = list(news.changes)
        mine = [change for change in changes if change.key in self._watched]
        for change in mine:
            self._apply(change)
        return bool(mine) or isinstance(news, Listing)

    def _apply(self, change: Change) -> None:
        if change.key == self._daemon_key:
            self.daemon = _daemon(change)
            return
        fact = facts.of_change(change)
        if isinstance(fact, facts.Quarantined):
            log.warning("%s is not obeyed: %s", change.key, fact.reason)
            fact = fact.gone
        match fact:
            case EpochSeen(epoch=epoch):
                self.epoch = epoch.id if epoch else None
            case TokenSeen(device=device, token=token, revision=revision):
                self._tokens.pop(device, None)
                if token is not None:
                    self._tokens[device] = (token, revision)
            case DeviceSeen(device=device, state=state):
                self.devices.pop(device, None)
                if state is not None:
                    self.devices[device] = state


def _daemon(change: Change) -> Daemon | None:
    try:
        return decode(Daemon, change.kv.value) if change.kv else None
    except SchemaError as error:
        log.warning("%s is not obeyed: %s", change.key, error)
        return None
