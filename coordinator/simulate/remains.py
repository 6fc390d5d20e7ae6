"""What evicted models leave in free pages of one device, as the node daemon keeps it: counted in chunks. PURE.

A model that comes back copies only what others have needed meanwhile. Who needs chunks takes blank ones first, then
those of whoever left longest ago. (Which of them become its KV, which wants blank ones, changes nothing of how many are
taken from whom.)
"""

from __future__ import annotations


class Remains:
    def __init__(self, chunks: int) -> None:
        self._blank = chunks
        self._left: dict[str, int] = {}

    def take(self, model: str, weights: int, kv: int) -> int:
        """`model` takes so many chunks; returns how many of its weights still hold them."""
        still = min(weights, self._left.pop(model, 0))
        self._need(weights - still + kv)
        return still

    def leave(self, model: str, weights: int, kv: int) -> None:
        """All its chunks are free; those of its weights hold them until somebody needs them."""
        self._left[model] = weights
        self._blank += kv

    def _need(self, chunks: int) -> None:
        while chunks > self._blank and self._left:
            oldest = next(iter(self._left))
            given = min(self._left[oldest], chunks - self._blank)
            self._left[oldest] -= given
            self._blank += given
            if not self._left[oldest]:
                del self._left[oldest]
        self._blank -= chunks
