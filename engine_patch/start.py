"""The agent's thread in the API-server process, and the one place that knows whether this process has an agent.

The agent has an event loop of its own, so that neither a busy API server nor vLLM's synchronous start-up holds up a
keep-alive. What crosses over: `attach`, `kv_use`, `answered` and the door's load into the agent's loop, the engine's
calls into the server's loop (`engine.VllmEngine`).
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import secrets
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import uvloop

from coordinator.core.model import Holder
from coordinator.store import connect, prompt
from engine_patch.agent import Agent
from engine_patch.door import Door
from engine_patch.engine import Engine, VllmEngine
from engine_patch.kv_worth import KvWorth
from engine_patch.plan import Plan
from engine_patch.settings import Birth, Settings, hand_down

log = logging.getLogger("vllm.vnpu.agent")

JOIN_S = 150.0
STOP_S = 15.0
GATE_S = 60.0
LAST_RESORT_S = 20.0
"""An engine that was told to end and did not."""
KV_STEP = 0.01
"""Changes of the KV cache's use below this are not told."""


class AgentThread:
    """The agent as the rest of the API-server process sees it. Also the gate's `Keeper`."""

    def __init__(self, settings: Settings, plan: Plan) -> None:
        self.settings = settings
        self.max_wait = settings.max_wait
        self._plan = plan
        self._holder = Holder(settings.engine or plan.model, secrets.token_hex(8))
        self._joined: Future[str] = Future()
        self._thread = threading.Thread(target=self._run, name="vnpu-agent", daemon=True)
        self._loop: asyncio.AbstractEventLoop
        self._stop: asyncio.Event
        self._agent: Agent
        self._door: Door | None = None
        self._attached = False
        self._kv_use = 0.0
        self._worth: KvWorth | None = None
        self._gone = False
        self._failed = False

    def start(self) -> None:
        """Join the cluster: returns when the engine is registered, so that what is wrong is said before anything is
        loaded. Children started from now on know their parent's engine.

        Raises:
            ConfigError: it cannot join, and why.
        """
        self._thread.start()
        socket = self._joined.result(JOIN_S)
        need = self._agent.estimate
        hand_down(
            Birth(
                engine=self._holder.engine,
                nonce=self._holder.nonce,
                socket=socket,
                drivers=self._agent.drivers,
                weights=need.weights,
                kv=need.kv,
                shared=self._agent.shared,
                cpus=tuple(sorted(os.sched_getaffinity(0))),
                desk=self._agent.desk,
            )
        )
        atexit.register(self._at_exit)

    # ---- called in the server's loop

    def door(self) -> Door:
        if self._door is None:
            self._door = Door(self.settings.max_queue, lambda load: self._tell(lambda: self._agent.load(load)))
        return self._door

    def attach(self, state: Any) -> None:
        """`state`: vLLM's application state, with `engine_client` and the server's `args`."""
        prompt.all_prompt()  # not before: the engine's other processes, which compute, have been started
        loop, keep = asyncio.get_running_loop(), self.settings.kv_keep
        self._worth = kv_worth(state.engine_client.vllm_config.cache_config)
        engine = VllmEngine(state.engine_client, self.door(), loop, self._agent.postbox, keep, self._worth)
        self.attach_engine(engine, state.args.host, state.args.port)

    def attach_engine(self, engine: Engine, host: str | None, port: int) -> None:
        self._attached = True
        url = self.settings.url or server_url(host, port)
        self._tell(lambda: self._agent.attach(engine, url, (local_host(host), port)))

    def kv_use(self, share: float) -> None:
        share = min(1.0, max(0.0, share))
        if abs(share - self._kv_use) >= KV_STEP or share == 0.0 != self._kv_use:
            self._kv_use = share
            self._tell(lambda: self._agent.kv_use(share))

    def answered(self, seconds: float) -> None:
        """A request has got the first byte of its answer, so long after it came."""
        self._tell(lambda: self._agent.answered(seconds))

    def prefilled(self, tokens: int, seconds: float) -> None:
        """A request has ended whose prompt took so long, of which so many tokens were computed."""
        if self._worth is not None:
            self._worth.prefilled(tokens, seconds)

    def expect_gate(self) -> None:
        """The engine is built: the gate must show up soon."""
        self._tell(lambda: self._loop.call_later(GATE_S, self._check_gate))

    def stop(self) -> None:
        """Blocks until the agent has given its lease back. Idempotent."""
        self._tell(lambda: self._stop.set())
        if self._thread is not threading.current_thread():
            self._thread.join(STOP_S)

    def _at_exit(self) -> None:
        """vLLM's server ends with status 0 also when its engine died: whoever restarts engines must see it."""
        self.stop()
        if self._failed:
            _end_process()

    def _tell(self, call: Callable[[], object]) -> None:
        if not self._gone:
            self._loop.call_soon_threadsafe(call)

    # ---- in the agent's thread

    def _run(self) -> None:
        prompt.be_prompt()
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(self._main())
        finally:
            self._gone = True

    async def _main(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        running = asyncio.create_task(self._live())
        stopping = asyncio.create_task(self._stop.wait())
        await asyncio.wait({running, stopping}, return_when=asyncio.FIRST_COMPLETED)
        running.cancel()
        stopping.cancel()
        await asyncio.wait({running, stopping}, timeout=STOP_S)
        if not running.cancelled() and (error := running.exception()) is not None:
            self._broken(error)

    async def _live(self) -> None:
        store = connect(self.settings.endpoints, vetted=True)
        try:
            self._agent = Agent(self.settings, self._plan, self._holder, store, self._ended)
            await self._agent.run(self._joined.set_result)
        finally:
            await store.close()

    def _broken(self, error: BaseException) -> None:
        while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
            error = error.exceptions[0]
        if not self._joined.done():
            self._joined.set_exception(error)
            return
        log.error("the agent failed: %s", error, exc_info=error)
        _end_process()

    def _ended(self, reason: str, engine: Engine | None) -> None:
        self._failed = True
        if engine is None:
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            engine.end(reason)
        self._loop.call_later(LAST_RESORT_S, _end_process)

    def _check_gate(self) -> None:
        if not self._attached:
            log.error("no gate: start the server with --middleware engine_patch.gate.Gate")
            self._agent.fail("the server was started without its gate")


def kv_worth(cache: Any) -> KvWorth | None:
    """For vLLM's CacheConfig, once the engine is up; None: a model without KV cache."""
    tokens = (cache.num_gpu_blocks or 0) * (cache.block_size or 0)
    return KvWorth(cache.kv_cache_memory_bytes / tokens) if tokens else None


def _end_process() -> None:
    """Children follow (`family.die_with_parent`), the daemon takes the pages back."""
    os._exit(1)


def local_host(host: str | None) -> str:
    """Where the server can be reached from this machine."""
    return "127.0.0.1" if host in (None, "", "0.0.0.0") else "::1" if host == "::" else host or ""


def server_url(host: str | None, port: int) -> str:
    name = local_host(host)
    return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"


_agent: AgentThread | None = None


def launch(settings: Settings, plan: Plan) -> None:
    """Start the agent of this process; once, further calls do nothing. Raises as `AgentThread.start`."""
    global _agent
    if _agent is None:
        thread = AgentThread(settings, plan)
        thread.start()
        _agent = thread


def agent_of_this_process() -> AgentThread | None:
    return _agent
