"""A real headless Chromium, spoken to by its own debugging protocol over one WebSocket.

https://chromedevtools.github.io/devtools-protocol/
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from aiohttp import ClientSession, ClientWebSocketResponse, WSMsgType

PATIENCE_S = 60.0
NAMES = ("chromium", "chromium-browser", "google-chrome")


def find_chromium() -> str:
    """Its path. Fails with what to install where there is none."""
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    assert found is not None, "no Chromium here; install it: apt-get install chromium"
    return found


class Tab:
    """One page. `errors` are what its console and its scripts complained about."""

    def __init__(self, socket: ClientWebSocketResponse) -> None:
        self._socket = socket
        self._ids = itertools.count(1)
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self.errors: list[str] = []

    async def listen(self) -> None:
        async for message in self._socket:
            if message.type is not WSMsgType.TEXT:
                continue
            told = json.loads(message.data)
            if "id" in told:
                self._answers.pop(told["id"]).set_result(told)
            else:
                self._hear(told["method"], told["params"])

    def _hear(self, method: str, params: dict[str, Any]) -> None:
        if method == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(params["exceptionDetails"])[:500])
        elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.errors.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")

    async def do(self, method: str, **params: Any) -> dict[str, Any]:
        number = next(self._ids)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": number, "method": method, "params": params})
        async with asyncio.timeout(PATIENCE_S):
            told = await answer
        assert "error" not in told, told
        return told["result"]

    async def js(self, expression: str) -> Any:
        """The value of an expression, promises awaited."""
        told = await self.do("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in told, told["exceptionDetails"]
        return told["result"].get("value")

    async def until(self, expression: str) -> None:
        """Wait until it is true, looked at after every change of the page."""
        script = f"""new Promise((done) => {{
            const look = () => {{ if ({expression}) {{ watch.disconnect(); clearInterval(tick); done(true); }} }};
            const watch = new MutationObserver(look);
            watch.observe(document, {{ subtree: true, childList: true, characterData: true, attributes: true }});
            const tick = setInterval(look, 200);
            look();
        }})"""
        try:
            await self.js(script)
        except TimeoutError:
            shown = await self.js("document.body.innerText")
            raise AssertionError(f"never true: {expression}\n{shown[:3000]}\n{self.errors}") from None

    async def open(self, url: str) -> None:
        await self.do("Page.navigate", url=url)
        await self.until("document.readyState === 'complete'")

    async def size(self, width: int, height: int, *, phone: bool = False) -> None:
        await self.do(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone
        )

    async def prefer(self, colours: str) -> None:
        """`light` or `dark`, as the system says it."""
        features = [{"name": "prefers-color-scheme", "value": colours}]
        await self.do("Emulation.setEmulatedMedia", features=features)

    async def key(self, name: str, code: int, text: str = "") -> None:
        for kind in ("keyDown", "keyUp"):
            more = {"text": text} if text and kind == "keyDown" else {}
            await self.do("Input.dispatchKeyEvent", type=kind, key=name, windowsVirtualKeyCode=code, **more)

    async def shoot(self, file: Path) -> None:
        """The whole page as PNG."""
        shot = await self.do("Page.captureScreenshot", captureBeyondViewport=True)
        await asyncio.to_thread(file.write_bytes, base64.b64decode(shot["data"]))


@asynccontextmanager
async def tab(folder: Path) -> AsyncIterator[Tab]:
    """A fresh browser with one page; its profile lies in `folder`."""
    process = await asyncio.create_subprocess_exec(
        find_chromium(), "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-dev-shm-usage",
        "--disable-background-networking", "--remote-debugging-port=0", f"--user-data-dir={folder}", "about:blank",
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        async with asyncio.timeout(PATIENCE_S):
            port = await _port(process)
        async with ClientSession() as session:
            async with session.get(f"http://127.0.0.1:{port}/json/list") as answer:
                [page] = [each for each in await answer.json() if each["type"] == "page"]
            async with session.ws_connect(page["webSocketDebuggerUrl"], max_msg_size=1 << 26) as socket:
                one = Tab(socket)
                listening = asyncio.create_task(one.listen())
                try:
                    for domain in ("Page", "Runtime", "Log"):
                        await one.do(f"{domain}.enable")
                    await one.do("Emulation.setScrollbarsHidden", hidden=True)  # a shot of the whole page has none
                    yield one
                finally:
                    listening.cancel()
                    await asyncio.wait((listening,))
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def _port(process: asyncio.subprocess.Process) -> int:
    assert process.stderr is not None
    while line := await process.stderr.readline():
        if b"DevTools listening on ws://" in line:
            return int(line.split(b"ws://")[1].split(b"/")[0].rpartition(b":")[2])
    raise AssertionError("Chromium ended before it listened")
