"""A TCP proxy that misbehaves on purpose: freezes, cuts, swallows replies, breaks off."""

from __future__ import annotations

import asyncio
import ssl
from contextlib import suppress

CHUNK = 1 << 16


class Proxy:
    """Between a client and `127.0.0.1:port`. Knobs act on what passes from then on."""

    def __init__(self, port: int, *, tls: ssl.SSLContext | None = None) -> None:
        self._port = port
        self._tls = tls
        self._server: asyncio.Server | None = None
        self._running: dict[asyncio.Task[None], asyncio.Event] = {}
        self.swallow: bytes | None = None
        """The answer to a request that contains these bytes does not come back: the connection is closed instead."""
        self.mute = False
        """New connections are accepted and nothing passes on them: a half-dead server."""
        self.most: int | None = None
        """Bytes that come back on one connection before it is closed."""

    async def __aenter__(self) -> Proxy:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._tls)
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.refuse()
        await self.cut()

    @property
    def port(self) -> int:
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}"

    def freeze(self) -> None:
        """Nothing passes on the connections there are; they stay open. New ones are served."""
        for flowing in self._running.values():
            flowing.clear()

    def refuse(self) -> None:
        """New connections are refused from now on."""
        if self._server:
            self._server.close()

    async def cut(self) -> None:
        """Every connection is closed."""
        tasks = list(self._running)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        flowing = self._running[task] = asyncio.Event()
        if not self.mute:
            flowing.set()
        swallowing = asyncio.Event()
        with suppress(OSError, asyncio.CancelledError):
            upstream, downstream = await asyncio.open_connection("127.0.0.1", self._port)
            try:
                there = asyncio.create_task(self._requests(reader, downstream, flowing, swallowing))
                back = asyncio.create_task(self._replies(upstream, writer, flowing, swallowing))
                try:
                    await asyncio.wait((there, back), return_when=asyncio.FIRST_COMPLETED)
                finally:
                    there.cancel()
                    back.cancel()
                    await asyncio.gather(there, back, return_exceptions=True)
            finally:
                downstream.transport.abort()
        writer.transport.abort()
        del self._running[task]

    async def _requests(
        self,
        source: asyncio.StreamReader,
        sink: asyncio.StreamWriter,
        flowing: asyncio.Event,
        swallowing: asyncio.Event,
    ) -> None:
        with suppress(OSError):
            while data := await source.read(CHUNK):
                await flowing.wait()
                if self.swallow is not None and self.swallow in data:
                    swallowing.set()
                sink.write(data)
                await sink.drain()

    async def _replies(
        self,
        source: asyncio.StreamReader,
        sink: asyncio.StreamWriter,
        flowing: asyncio.Event,
        swallowing: asyncio.Event,
    ) -> None:
        passed = 0
        with suppress(OSError):
            while data := await source.read(CHUNK):
                await flowing.wait()
                passed += len(data)
                if swallowing.is_set() or (self.most is not None and passed > self.most):
                    return
                sink.write(data)
                await sink.drain()
