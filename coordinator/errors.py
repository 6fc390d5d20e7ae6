"""One root for every error that vNPU raises on purpose; each says what to do about it."""

from __future__ import annotations


class VnpuError(Exception):
    """Root of vNPU's errors. `remedy` is one sentence that tells the reader what to do."""

    def __init__(self, message: str, *, remedy: str = "") -> None:
        super().__init__(f"{message} ({remedy})" if remedy else message)
        self.remedy = remedy


class ConfigError(VnpuError):
    """The configuration cannot be used; the message names file, key and remedy. Where it is about a file, `file`, `key`
    (dots between its parts) and `fault` have them apart."""

    def __init__(self, message: str, *, remedy: str = "", file: str = "", key: str = "") -> None:
        where = f"{file}: {key}: " if key else f"{file}: " if file else ""
        super().__init__(where + message, remedy=remedy)
        self.file = file
        self.key = key
        self.fault = message


class StoreError(VnpuError):
    """etcd refused or could not answer a call."""


class StoreUnavailable(StoreError):
    """No endpoint answered; the call did not take effect or may be repeated safely."""


class Ambiguous(StoreError):
    """The answer to a write was lost: it may or may not have happened. Read back, never resend."""


class Compacted(StoreError):
    """The wanted revision is compacted: list again and watch from the listed revision + 1."""

    def __init__(self, revision: int) -> None:
        super().__init__(f"history before revision {revision} is compacted", remedy="list again")
        self.revision = revision


class Rewound(Compacted):
    """The store is behind what was seen of it: its data was lost or a backup was put back (PROTOCOL rule 13)."""

    def __init__(self, revision: int) -> None:
        StoreError.__init__(self, f"the store went back to revision {revision}", remedy="list again")
        self.revision = revision


class LeaseLost(StoreError):
    """The lease expired or was revoked; everything put under it is gone."""


class SchemaError(VnpuError):
    """A value in etcd does not decode; it is counted and quarantined, never obeyed."""
