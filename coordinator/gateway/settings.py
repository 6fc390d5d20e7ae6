"""What a gateway is told, free of files and of the process around it."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec


class Names(msgspec.Struct, frozen=True):
    """`models` are those of the configuration: they exist before an engine of theirs has registered; `aliases` are
    their other names, each with the model it means; `prefill` is the prefill group of each that has one, which no
    client can name; nor can one name those that have `left`, though their engines may still be there."""

    models: tuple[str, ...] = ()
    aliases: Mapping[str, str] = {}
    prefill: Mapping[str, str] = {}
    left: frozenset[str] = frozenset()

    @property
    def hidden(self) -> frozenset[str]:
        return self.left.union(self.prefill.values())


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """`models`, `aliases` and `prefill` as `Names` has them. At most `max_queue` requests wait for a model. A body has
    at most `max_body` bytes and must arrive within `body_timeout_s`; all together have at most `body_budget`. An
    engine may be silent for `answer_timeout_s`. At the end, running answers get `drain_s`. `trusted_hosts` are names we
    go by and hosts we connect to; `api_keys` hashes of clients' keys by their holders' names."""

    host: str = "127.0.0.1"
    port: int = 8080
    api_keys: Mapping[str, str] = {}
    max_queue: int = 512
    models: tuple[str, ...] = ()
    aliases: Mapping[str, str] = {}
    prefill: Mapping[str, str] = {}
    trusted_hosts: tuple[str, ...] = ()
    max_body: int = 32 << 20
    body_budget: int = 512 << 20
    body_timeout_s: float = 60.0
    answer_timeout_s: float = 3600.0
    drain_s: float = 10.0

    @property
    def names(self) -> Names:
        return Names(self.models, self.aliases, self.prefill)
