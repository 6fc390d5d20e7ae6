"""The view under which a region's pages are lent to other processes of this node."""

from __future__ import annotations

from engine_patch.region import Region
from native.client import Client


class LentView:
    """Not thread-safe. A view ends when pages of it are given back, and with the daemon that made it: its id says
    neither, and chunks come again under the same ids."""

    def __init__(self, client: Client, region: Region) -> None:
        self._client, self._region = client, region
        self._view = 0
        self._since = (0, 0)

    def now(self, lost: int = 0) -> int:
        """A view of all that is mapped; another than `lost`, which the daemon does not know any more. Raises
        DaemonError."""
        since = (self._client.kept.generation, self._region.moves)
        if self._view in (0, lost) or self._since != since:
            self._view = self._client.offer_view(self._region.device, self._region.chunks)
            self._since = since
        return self._view
