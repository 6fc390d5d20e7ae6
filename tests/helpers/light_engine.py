"""A real engine process without vLLM, for tests that kill and stop engines: the real agent, gate, memory hands and
daemon client, around a few megabytes of "weights" and a server that answers with what it reads from them.

In the test: `LightEngine.start(…)`. In the process (`python tests/helpers/light_engine.py`): settings come from the
environment, as for vLLM. Steps named in `hold` say on standard output that they have begun, then wait for a line; with
`settle` among them requests run while the restore goes on; `answer`: before the last step of a request.
"""

from __future__ import annotations

import asyncio
import ctypes
import hashlib
import json
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Collection, Set
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import aiohttp

from tests.helpers.child import PATIENCE_S, Child

ROOT = Path(__file__).resolve().parents[2]
LONG_TTL = 30
"""Seconds: longer than a machine is away from an engine that is well."""
SHORT_TTL = 2
"""Seconds, short enough to wait for."""


class LightEngine(Child):
    """The test's end."""

    def __init__(self, process: asyncio.subprocess.Process, engine: str, port: int, log: Path) -> None:
        super().__init__(process)
        self.engine = engine
        self.port = port
        self.log = log
        self._said: deque[str] = deque()

    @classmethod
    async def start(
        cls,
        folder: Path,
        etcd: str,
        engine: str,
        *,
        node: str,
        device: str = "0",
        size: int = 6 << 20,
        hold: Collection[str] = (),
        fault: str = "",
        ttl: int = LONG_TTL,
        content: str = "",
        claims: str = "",
        beside: str = "",
        join: float = 60.0,
        module: str = "",
    ) -> LightEngine:
        """`size`: bytes of weights; `content`: what they are made of, by default the engine's name. `claims`: as which
        content it streams them (`tests.helpers.light_peers`). `beside`: where it starts beside another of its content,
        `first` or `next`. `ttl`: of its lease, `SHORT_TTL` for who waits until that ends. `fault`: `skip` leaves a
        chunk out of a restore, `write`
        writes to the weights with each request, `forget` does not find again what it left in its pages. `join`: seconds
        of patience. `module`: what runs instead of this one."""
        from coordinator.supervise.ports import free_port  # beside this file lies another `coordinator`

        port = free_port()
        light = {
            "port": port,
            "size": size,
            "hold": list(hold),
            "fault": fault,
            "join": join,
            "content": content or engine,
            "claims": claims,
            "beside": beside,
        }
        environ = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "VNPU_ETCD_ENDPOINTS": etcd,
            "VNPU_NODE": node,
            "VNPU_DEVICE": device,
            "VNPU_ENGINE_ID": engine,
            "VNPU_LEASE_TTL": str(ttl),
            "LIGHT_ENGINE": json.dumps(light),
        }
        log = folder / f"{engine}.log"
        with log.open("ab") as file:
            process = await asyncio.create_subprocess_exec(
                sys.executable, *(("-m", module) if module else (__file__,)), env=environ, stderr=file,
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            )  # fmt: skip
        return cls(process, engine, port, log)

    async def at(self, step: str) -> None:
        """Until the held `step` has begun."""
        async with asyncio.timeout(PATIENCE_S):
            while await self.hear() != step:
                pass

    async def hear(self) -> str:
        """The next line that it says."""
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        assert line, f"{self.engine} died:\n{self.log.read_text()}"
        return line.decode().strip()

    def go_on(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(b"\n")

    async def ended(self) -> int:
        """Its exit status, once it has one."""
        async with asyncio.timeout(PATIENCE_S):
            return await self._process.wait()

    async def ask(self, prompt: str = "a", steps: int = 1, headers: dict[str, str] | None = None) -> tuple[int, Any]:
        """Status and JSON of one request to its own port."""
        timeout = aiohttp.ClientTimeout(total=PATIENCE_S)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            url = f"http://127.0.0.1:{self.port}/v1/completions"
            body = {"prompt": prompt, "steps": steps}
            async with session.post(url, json=body, headers=headers or {}) as response:
                return response.status, await response.json()


# ---- in the process


def content_of(seed: str, size: int) -> bytes:
    """The weights that are made of `seed`."""
    block = hashlib.sha256(seed.encode()).digest()
    return (block * (size // len(block) + 1))[:size]


class ArenaPools:
    """`engine_patch.device_bus.Pools` without torch: blocks are taken from the arena by hand."""

    def allocating(self, kind: Any, arena: Any) -> AbstractContextManager[None]:
        return nullcontext()

    def live(self, kind: Any, arena: Any) -> list[tuple[int, int]]:
        blocks: list[tuple[int, int]] = arena.blocks()
        return blocks

    def synchronize(self) -> None:
        pass


def bus_of(driver: Any, cpus: Any, need: Any) -> Any:
    from engine_patch.device_bus import DeviceBus
    from engine_patch.host_bus import HostBus

    return HostBus(cpus) if driver.name == "host" else DeviceBus(driver, ArenaPools(), need)


class Memory:
    """`engine_patch.engine.Engine` around `Hands`: in this one process, rank 0."""

    def __init__(self, light: dict[str, Any], door: Any, server_loop: asyncio.AbstractEventLoop) -> None:
        from coordinator.core.model import Bytes
        from engine_patch import settings
        from engine_patch.host_memory import Mapping
        from engine_patch.memory import Hands
        from native import _native
        from native.client import Client

        class Forgetful(Hands):
            """Leaves the last chunk out of a restore."""

            def _entries(self, still: Set[int]) -> list[list[tuple[int, int, int]]]:
                *others, last = super()._entries(still)
                to, at, length = last[-1]
                return [*others, [*last[:-1], (to, at, length - (2 << 20))]]

        birth, found = settings.inherited(), settings.required()
        device = found.device(0)
        client = Client(birth.socket, birth.engine, birth.nonce, "worker")
        client.await_open(device, PATIENCE_S)
        chunk = client.connect().chunk[device]
        kind = Forgetful if light["fault"] == "skip" else Hands
        driver = _native.open_driver(birth.drivers[0])
        need = Bytes(weights=birth.weights, kv=birth.kv)
        self._bus = bus_of(driver, birth.cpus, need)
        self.hands = kind(driver, client, device, chunk, self._bus, share=found.share_weights)
        self.hands.admit(need, PATIENCE_S)
        self.size = light["size"]
        self._scratch = Mapping(self.size)
        self.at = self.hands.weights.arena.allocate(self.size)
        streams = None
        if light.get("claims"):
            from tests.helpers.light_peers import Streams

            streams = Streams(self.hands, birth, light["claims"], self.at, self.size, light["beside"])
        fetched = streams is not None and light["beside"] == "next"
        self._put(self.at, content_of("no weights yet" if fetched else light["content"], self.size))
        if streams is not None and fetched:
            streams.fetch()
        self.kv_at = self.hands.kv.arena.allocate(self.hands.kv.bytes)
        for region in (self.hands.weights, self.hands.kv):
            self.hands.trim(region)
        self.hands.move_in()
        if streams is not None:
            streams.serve()
        if light["fault"] == "forget":
            self.hands._left.leave = lambda whole: ""  # type: ignore[method-assign]
        self._hold = set(light["hold"])
        self._writes = light["fault"] == "write"
        self.gated = "settle" in self._hold
        self._door = door
        self._loop = server_loop
        self.running = asyncio.Event()
        self.inside = 0
        """Requests that have come and have no answer yet."""
        self._drained = asyncio.Event()
        if "enter" in self._hold:
            from tests.helpers.held_entries import hold_entries

            hold_entries(lambda: self.held("enter"))

    def read(self, prompt: str) -> str:
        """A function of every byte of the weights, for which it waits; faults where they are away."""
        self.hands.await_stage(0)
        self.hands.used = True
        content = self._get(self.at, self.size)
        if self._writes:
            self._put(self.at, bytes([content[0] ^ 1]))
        return hashlib.sha256(content + prompt.encode()).hexdigest()

    def write_kv(self, text: str) -> None:
        self._put(self.kv_at, text.encode().ljust(4096, b"."))

    def read_kv(self) -> str:
        return self._get(self.kv_at, 4096).decode().rstrip(".")

    def _put(self, address: int, data: bytes) -> None:
        if self._bus.readable:
            ctypes.memmove(address, data, len(data))
            return
        ctypes.memmove(self._scratch.address, data, len(data))
        assert self._bus.start([(address, self._scratch.address, len(data))], beside=False).wait(None, PATIENCE_S)

    def _get(self, address: int, size: int) -> bytes:
        if self._bus.readable:
            return ctypes.string_at(address, size)
        self._bus.save([(self._scratch.address, address, size)])
        return ctypes.string_at(self._scratch.address, size)

    async def held(self, step: str) -> None:
        if step in self._hold:
            sys.stdout.write(f"{step}\n")
            sys.stdout.flush()
            await asyncio.to_thread(sys.stdin.readline)

    async def _in_server(self, call: Any) -> None:
        async def there() -> None:
            call()

        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(there(), self._loop))

    def _report(self, **fields: Any) -> tuple[Any, ...]:
        from engine_patch.report import Report

        return (Report(rank=0, pid=os.getpid(), held=self.hands.held, need=self.hands.need, **fields),)

    async def drain(self) -> None:
        self._drained.clear()
        await self._in_server(lambda: (self._door.shut(), self.running.clear()))
        await self.held("drain")
        self._drained.set()

    async def resume(self) -> None:
        await self._in_server(lambda: (self.running.set(), self._door.open()))

    async def seal(self) -> tuple[Any, ...]:
        await self.held("seal")
        return self._report(digest=await asyncio.to_thread(self.hands.seal))

    async def offload(self) -> tuple[Any, ...]:
        from engine_patch.memory import denied
        from native.link import DaemonRefused

        await self._drained.wait()
        await self.held("offload")
        keep = [(self.kv_at, 4096)]
        try:
            saved, steps = await asyncio.to_thread(self.hands.offload, keep)
        except DaemonRefused as refused:
            return self._report(denied=str(refused)) if denied(refused) else self._report(error=str(refused))
        return self._report(kv_saved=saved, d2h=self.hands.copied_out, steps=steps)

    async def restore(self) -> tuple[Any, ...]:
        from engine_patch.memory import denied
        from engine_patch.restoring import MemoryFault
        from native.link import DaemonRefused

        await self.held("restore")
        try:
            if self.gated:
                return self._report(steps=await asyncio.to_thread(self.hands.begin), pending=True)
            moved, steps = await asyncio.to_thread(self.hands.restore)
        except DaemonRefused as refused:
            return self._report(denied=str(refused)) if denied(refused) else self._report(error=str(refused))
        except MemoryFault as fault:
            return self._report(error=str(fault))
        return self._report(restored=moved, steps=steps)

    async def settle(self) -> tuple[Any, ...]:
        await self.held("settle")
        moved, steps = await asyncio.to_thread(self.hands.settle)
        return self._report(restored=moved, steps=steps)

    async def undo(self) -> tuple[Any, ...]:
        await asyncio.to_thread(self.hands.drop)
        return self._report()

    async def ping(self) -> None:
        await self.held("ping")
        self._hold.discard("ping")
        await self._in_server(lambda: None)

    def pids(self) -> tuple[int, ...]:
        return ()

    def stopping(self) -> bool:
        return False

    def end(self, reason: str) -> None:
        self._loop.call_soon_threadsafe(self._door.fail, reason)
        threading.Thread(target=self._exit, daemon=True).start()

    def _exit(self) -> None:
        """As vLLM's server ends: who was here has an answer, however busy the machine is."""
        time.sleep(1.0)
        until = time.monotonic() + PATIENCE_S
        while self.inside and time.monotonic() < until:
            time.sleep(0.01)
        os._exit(1)


class Server:
    """What vLLM's API server is to the agent: an application behind the real gate, whose answers read the weights."""

    def __init__(self, light: dict[str, Any], agent: Any) -> None:
        self.max_wait = agent.max_wait
        self.door = agent.door
        self.stop = agent.stop
        self._light = light
        self._agent = agent
        self._memory: Memory

    async def run(self) -> None:
        import uvicorn

        loop = asyncio.get_running_loop()
        self._memory = await asyncio.to_thread(Memory, self._light, self.door(), loop)
        port = self._light["port"]
        config = uvicorn.Config(
            self._gated, interface="asgi3", host="127.0.0.1", port=port, log_level="warning", lifespan="on"
        )
        await uvicorn.Server(config).serve()

    def attach(self, state: Any) -> None:
        self._agent.attach_engine(self._memory, "127.0.0.1", self._light["port"])

    def answered(self, seconds: float) -> None:
        self._agent.answered(seconds)

    async def _gated(self, scope: Any, receive: Any, send: Any) -> None:
        from engine_patch.gate import Gate

        scope["app"] = type("App", (), {"state": None})
        self._memory.inside += scope["type"] == "http"
        try:
            await Gate(self._app, self)(scope, receive, send)
        finally:
            self._memory.inside -= scope["type"] == "http"

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            while True:
                kind = (await receive())["type"]
                await send({"type": f"{kind}.complete"})
                if kind == "lifespan.shutdown":
                    return
        body = json.loads((await receive())["body"])
        for left in reversed(range(body["steps"])):
            if left == 0:
                await self._memory.held("answer")
            await self._memory.running.wait()
            answer = self._memory.read(body["prompt"])
            self._memory.write_kv(body["prompt"])
            await asyncio.sleep(0.01)
        await self._memory.running.wait()
        data = json.dumps({"answer": answer, "kv": self._memory.read_kv()}).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(data)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": data})


def main() -> None:
    import logging

    from engine_patch import agent as agents
    from engine_patch import family, settings
    from engine_patch.estimate import Weights
    from engine_patch.plan import Plan
    from engine_patch.start import AgentThread, server_url

    logging.basicConfig(level=logging.DEBUG, stream=sys.stderr)
    logging.getLogger("asyncio").setLevel(logging.INFO)
    light = json.loads(os.environ["LIGHT_ENGINE"])
    agents.DISCOVER_S = light["join"]
    found = settings.required()
    plan = Plan(
        model=light.get("model") or found.engine or "light",
        url=server_url(None, light["port"]),
        pid=os.getpid(),
        boot_id=family.boot_id(),
        weights=Weights(light["size"], 0),
        kv=1 << 20,
    )
    agent = AgentThread(found, plan)
    agent.start()
    asyncio.run(Server(light, agent).run())


if __name__ == "__main__":
    main()
