"""An HTTP server on one address: listens, tells its URL, ends in order."""

from __future__ import annotations

import logging

from aiohttp import web

log = logging.getLogger(__name__)


class Listener:
    """Serves `app` on `host:port` (port 0: a free one). A handler is cancelled when its client leaves."""

    def __init__(self, app: web.Application, host: str, port: int, drain_s: float) -> None:
        self._host = host
        self._port = port
        self._runner = web.AppRunner(
            app, handler_cancellation=True, access_log=None, shutdown_timeout=drain_s, handle_signals=False
        )

    async def start(self) -> str:
        """Returns the URL. Raises OSError when the address cannot be listened on."""
        await self._runner.setup()
        await web.TCPSite(self._runner, self._host, self._port, backlog=1024).start()
        self._port = int(self._runner.addresses[0][1])
        return self.url

    @property
    def url(self) -> str:
        """`http://host:port` as configured: a wildcard host stays one."""
        return f"http://[{self._host}]:{self._port}" if ":" in self._host else f"http://{self._host}:{self._port}"

    async def close(self) -> None:
        """Stop listening, close idle connections, give running handlers `drain_s` to end, then cancel them."""
        await self._runner.cleanup()
