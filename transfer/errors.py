"""What goes wrong between engines; every error says what to do about it."""

from __future__ import annotations


class TransferError(Exception):
    """Root of the transfer's errors. `remedy` is one sentence that tells the reader what to do."""

    def __init__(self, message: str, *, remedy: str = "") -> None:
        super().__init__(f"{message} ({remedy})" if remedy else message)
        self.remedy = remedy


class PeerLost(TransferError):
    """The connection broke, or the peer did not answer before the deadline. Another peer may do."""


class PeerViolation(TransferError):
    """What the peer sent does not keep to the protocol: garbage, too large, out of turn."""


class Corrupt(PeerViolation):
    """Bytes arrived that are not the bytes that were sent: a checksum differs. What was written is not to be used."""


class NotTrusted(TransferError):
    """One side could not prove that it knows the shared key."""
