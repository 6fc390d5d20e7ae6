"""PURE: whether KV is worth keeping across a switch, from what this engine has measured.

A kept token costs its bytes twice over the bus, out and back, while others wait; a dropped one is computed again. Both
are known to scale: so what decides is the time a token takes on either way, and it is decided anew at each switch.
Until both were measured KV is kept, which is the cheaper way on all but slow buses (docs/memory.md).
"""

from __future__ import annotations

SMOOTH = 0.3
"""Weight of the newest measurement."""
LEAST_TOKENS = 256
"""Prompts below it say more about a step's fixed cost than about a token's."""
LEAST_BYTES = 64 << 20
"""The same of copies. Weights pass it at every restore."""
DOUBT = 2.0
"""Dropping must be so much cheaper: it also makes whoever comes back wait, and measurements scatter."""


class KvWorth:
    """Of one engine. Written from several threads, each its own figure."""

    def __init__(self, token_bytes: float) -> None:
        """`token_bytes`: of KV that a token takes on each device."""
        self._token_bytes = token_bytes
        self.prefill_s: float | None = None
        """Seconds to compute one token's KV."""
        self.out_s: float | None = None
        """Seconds a byte from the device, and back."""
        self.in_s: float | None = None

    def prefilled(self, tokens: int, seconds: float) -> None:
        """A request's prompt was computed: so many tokens that were no hits, in so long."""
        if tokens >= LEAST_TOKENS and seconds > 0:
            self.prefill_s = _mixed(self.prefill_s, seconds / tokens)

    def saved(self, size: int, seconds: float) -> None:
        """So many bytes went out of the device in so long."""
        if size >= LEAST_BYTES and seconds > 0:
            self.out_s = _mixed(self.out_s, seconds / size)

    def restored(self, size: int, seconds: float) -> None:
        """And back to it."""
        if size >= LEAST_BYTES and seconds > 0:
            self.in_s = _mixed(self.in_s, seconds / size)

    @property
    def keep_s(self) -> float | None:
        """Seconds that keeping one token costs; None: not known. Of a direction that was never measured it is taken
        that it is as fast as the other."""
        out, back = self.out_s or self.in_s, self.in_s or self.out_s
        return None if out is None or back is None else self._token_bytes * (out + back)

    @property
    def keep(self) -> bool:
        """Whether keeping is the cheaper way, or nobody knows."""
        cost, saving = self.keep_s, self.prefill_s
        return cost is None or saving is None or cost <= DOUBT * saving


def _mixed(old: float | None, new: float) -> float:
    return new if old is None else old + SMOOTH * (new - old)
