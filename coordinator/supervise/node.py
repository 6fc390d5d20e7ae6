"""A whole node: etcd, daemon, coordinator and engines, brought up in that order and taken down in the reverse.

Order down: the coordinator first (its gateway refuses new requests and lets running ones end), then the engines, the
daemon, etcd. A core process that cannot be kept ends the node; an engine that cannot be kept is announced and left out.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from secrets import token_hex
from tempfile import TemporaryDirectory
from typing import Protocol

from coordinator.config import Config
from coordinator.core.model import Coordinator
from coordinator.embedded import EmbeddedEtcd, find_binary
from coordinator.errors import VnpuError
from coordinator.picture import Mirror, Picture
from coordinator.placement import engines
from coordinator.store import connect
from coordinator.store.access import credentials_apart
from coordinator.store.etcd import EtcdStore
from coordinator.store.floor import development
from coordinator.store.preflight import preflight
from coordinator.supervise import programs, readiness
from coordinator.supervise.backoff import Backoff
from coordinator.supervise.child import Child, adopt_orphans, first
from coordinator.supervise.engine_command import cores_by_engine, spare_core
from coordinator.supervise.etcd_child import EtcdChild
from coordinator.supervise.guard import Guard
from coordinator.supervise.keeper import Keeper, Kind, Program, Running, Spawn, State
from coordinator.supervise.layout import Process, RunDir, RunFile
from coordinator.supervise.on_demand import OnDemand, Roll, told
from coordinator.supervise.ports import check_free, free_port
from coordinator.supervise.turnover import Turnover

STARTS_AT_ONCE = 2
"""Starting an engine is Python imports for most of it: more at once only make all of them late."""
STORE_TIMEOUT_S = 10.0
DOWN = ((Kind.COORDINATOR,), (Kind.ENGINE,), (Kind.DAEMON,), (Kind.ETCD,))


class NodeFailed(VnpuError):
    """The node cannot come up, or cannot go on."""


class Display(Protocol):
    """What a user sees of it."""

    def say(self, text: str) -> None:
        """One event, for good."""

    def moved(self, keeper: Keeper) -> None:
        """A process changed its state."""

    def follow(self, keepers: Sequence[Keeper], picture: Picture) -> None:
        """From here on these processes are coming up, and `picture` shows how far they are."""

    def ready(self, run: RunFile) -> None:
        """All that can be up is up."""


class Node:
    """One run of `vnpu up`. `without` names models whose engines somebody else starts; `watch`: the coordinator reads
    the configuration again whenever the file changes."""

    def __init__(
        self,
        config: Config,
        file: Path,
        run_dir: RunDir,
        display: Display,
        environ: Mapping[str, str],
        without: Sequence[str] = (),
        python: str = sys.executable,
        *,
        watch: bool = False,
    ) -> None:
        self._config = config
        self._file = file.absolute()
        self._run_dir = run_dir
        self._display = display
        self._endpoints: tuple[str, ...] = config.endpoints
        self._urls, secrets = credentials_apart(config.endpoints)
        self._environ = {**environ, **secrets, **({} if config.endpoints else development(environ))}
        self._python = python
        self._watch = watch
        self._engines = engines(config)
        self._names = [id_ for id_, engine in self._engines.items() if engine.name not in without]
        self._identifier = f"{config.node}-{os.getpid()}"
        self._nonce = token_hex(8)
        self._keepers: list[Keeper] = []
        self._eager: list[Keeper] = []
        self._on_demand: list[OnDemand] = []
        self._attending: dict[str, asyncio.Task[None]] = {}
        self._engine_moved = asyncio.Event()
        self._hurry = asyncio.Event()
        self._core_lost = asyncio.Event()
        self._slot = asyncio.Semaphore(STARTS_AT_ONCE)
        self._core_up = False
        self._engines_settled = False
        self._going_down = False
        self._written: RunFile | None = None

    async def run(self, stop: asyncio.Event, hurry: asyncio.Event) -> None:
        """Until `stop`; then everything ends in order, at once on `hurry`. Raises VnpuError when the node cannot come
        up or cannot go on; nothing of it is left then either."""
        # vLLM's processes talk over sockets that it does not unlink when it is killed; their paths must be short.
        with self._run_dir.held(), TemporaryDirectory(prefix="vnpu-") as self._sockets, Guard() as self._guard:
            await asyncio.to_thread(self._check_ports)  # it may ask a name server
            for path in (self._run_dir.run_file, self._run_dir.socket, Path(self._sockets)):
                self._guard.remove(path)
            adopt_orphans()
            failure = await self._live(stop, hurry)
        if failure is not None:
            raise failure

    def _check_ports(self) -> None:
        config, where = self._config, self._file
        check_free(config.gateway.listen.host, config.gateway.listen.port, f"{where}: gateway.listen")
        check_free(config.admin.listen.host, config.admin.listen.port, f"{where}: admin.listen")
        for name in self._names:
            check_free("127.0.0.1", self._engines[name].model.port or 0, f"{where}: models.{name}.port")

    async def _live(self, stop: asyncio.Event, hurry: asyncio.Event) -> VnpuError | None:
        async with asyncio.TaskGroup() as self._tasks:
            try:
                await first((stop.wait(), self._serve(), self._losing_core()))
            except VnpuError as error:
                return error
            finally:
                await self._take_down(hurry)
        return None

    async def _serve(self) -> None:
        """Brings the node up; raises when it cannot go on."""
        if not self._urls:
            await self._start_etcd()
        store = connect(self._urls, environ=self._environ, vetted=True)
        try:
            self._mirror = Mirror(store)
            self._roll = Roll(
                store, self._config.node, lambda: {one.program.name: one.process for one in self._on_demand}
            )
            await first((self._mirror.run(), self._with_store(store)))
        finally:
            await store.close()

    async def _start_etcd(self) -> None:
        self._run_dir.forget_store()
        etcd = EmbeddedEtcd(self._run_dir.etcd, self._run_dir.log("etcd"), binary=find_binary(self._environ))

        async def spawn(program: Program) -> Running:
            return await EtcdChild.spawn(etcd, self._guard)

        await self._keep(programs.etcd(), spawn).ready_once.wait()
        self._endpoints = self._urls = (etcd.url,)

    async def _with_store(self, store: EtcdStore) -> None:
        await self._store_answers()
        await preflight(store)
        await self._start_core()
        programs_ = self._engine_programs(self._config, self._names)
        self._on_demand += [self._lazily(self._config, program) for program in programs_ if self._lazy(program)]
        self._eager += [self._keep(program, self._spawn) for program in programs_ if not self._lazy(program)]
        self._display.follow(self._keepers, self._mirror.picture)
        self._core_up = True
        self._tell()
        await first((self._bring_up(tuple(self._eager)), self._roll.run(), self._beside()))

    async def _beside(self) -> None:
        """Engines that run when the leader says so, and those that come and go with the configuration."""
        read = (self._file, self._environ)
        turnover = Turnover(self._config, read, self._identifier, self._mirror, self._come, self._go, self.say)
        async with asyncio.TaskGroup() as self._waiting:
            for one in self._on_demand:
                self._attend(one)
            self._waiting.create_task(turnover.run(), name="turnover")

    def _attend(self, one: OnDemand) -> None:
        self._attending[one.program.name] = self._waiting.create_task(one.run(), name=f"{one.program.name} on demand")

    def _come(self, config: Config, name: str) -> None:
        """An engine that came with the configuration. Raises ConfigError where its port is taken."""
        engine = engines(config)[name]
        check_free("127.0.0.1", engine.model.port or 0, f"{self._file}: models.{name}.port")
        self._engines = {**self._engines, name: engine}
        [program] = self._engine_programs(config, [name])
        if self._lazy(program):
            self._on_demand.append(self._lazily(config, program))
            self._attend(self._on_demand[-1])
            self._roll.moved()
            self._tell()
        else:
            self._eager.append(self._keep(program, self._spawn))

    async def _go(self, name: str) -> None:
        """An engine that went with it; returns when nothing of it is left."""
        await self._forget_lazy(name)
        for keeper in [keeper for keeper in self._keepers if keeper.program.name == name]:
            await keeper.stop(self._hurry)
            self._keepers.remove(keeper)
            self._eager = [other for other in self._eager if other is not keeper]
        self._engines = {id_: engine for id_, engine in self._engines.items() if id_ != name}
        self._tell()

    async def _forget_lazy(self, name: str) -> None:
        if (attending := self._attending.pop(name, None)) is None:
            return
        attending.cancel()
        await asyncio.wait((attending,))
        self._on_demand = [one for one in self._on_demand if one.program.name != name]
        self._roll.moved()

    async def _bring_up(self, engines: Sequence[Keeper]) -> None:
        """The engines that run as long as the node does."""
        await asyncio.gather(*(first((keeper.ready_once.wait(), keeper.ended.wait())) for keeper in engines))
        self._engines_settled = True
        self._tell()
        if self._serves():
            self._display.ready(self._run_file())
        while self._serves():
            self._engine_moved.clear()
            await self._engine_moved.wait()
        raise self._nothing_serves()

    def _serves(self) -> bool:
        """Some engine is there or may come; what `--without` names is somebody else's to start."""
        return len(self._eager) < len(self._engines) or not all(keeper.ended.is_set() for keeper in self._eager)

    def _nothing_serves(self) -> NodeFailed:
        names = [keeper.program.name for keeper in self._eager]
        logs = ", ".join(str(self._run_dir.log(name)) for name in names)
        remedy = f"mend what stands at the end of {logs}, then start again"
        return NodeFailed(f"no engine is left to serve {', '.join(names)}", remedy=remedy)

    async def _store_answers(self) -> None:
        urls = ", ".join(self._urls)
        try:
            async with asyncio.timeout(STORE_TIMEOUT_S):
                await self._mirror.until(lambda picture: True)
        except TimeoutError:
            remedy = "mend `etcd:` in the configuration, or start that etcd"
            raise NodeFailed(f"etcd at {urls} does not answer", remedy=remedy) from None
        self._display.say(f"etcd answers at {urls}")

    async def _start_core(self) -> None:
        started = [
            self._keep(programs.daemon(self._config, self._urls, self._run_dir, self._python), self._spawn),
            self._keep(self._coordinator_program(), self._spawn),
        ]
        self._display.follow(self._keepers, self._mirror.picture)
        await asyncio.gather(*(keeper.ready_once.wait() for keeper in started))

    def _coordinator_program(self) -> Program:
        return programs.coordinator(
            self._config, self._file, self._urls, self._identifier, self._python, watch=self._watch, supervised=True
        )

    def _engine_programs(self, config: Config, names: Sequence[str]) -> list[Program]:
        cores = sorted(os.sched_getaffinity(0))
        bound, spare = cores_by_engine(config, cores), spare_core(config, cores)
        taken = {model.port for model in config.models.values() if model.port}
        found = []
        for name in names:
            port = self._engines[name].model.port or free_port(taken)
            taken.add(port)
            found.append(programs.engine(config, name, self._urls, port, bound[name], self._python, spare=spare))
        return found

    def _lazy(self, program: Program) -> bool:
        return self._engines[program.name].model.start == "lazy"

    def _lazily(self, config: Config, program: Program) -> OnDemand:
        def keep(program: Program) -> Keeper:
            return self._keep(program, self._spawn)

        process = told(config, program.name, self._nonce)
        return OnDemand(program, process, self._mirror, keep, self._released, self._roll.moved)

    def _released(self, keeper: Keeper) -> None:
        self._keepers.remove(keeper)
        self._tell()

    def _keep(self, program: Program, spawn: Spawn) -> Keeper:
        slot = self._slot if program.kind is Kind.ENGINE else asyncio.Semaphore()
        keeper = Keeper(program, spawn, self._until_ready, self, slot, Backoff())
        self._keepers.append(keeper)
        self._tasks.create_task(keeper.run(), name=program.name)
        return keeper

    async def _spawn(self, program: Program) -> Running:
        key = {programs.TRANSFER_KEY: str(self._run_dir.transfer_key)}
        env = programs.environment(program, {**key, **self._environ, "VLLM_RPC_BASE_PATH": self._sockets})
        return await Child.spawn(program.argv, env, self._run_dir.log(program.name), self._guard)

    async def _until_ready(self, program: Program, child: Running) -> None:
        """A program is ready when it says so in etcd, under the process id that we started."""
        if program.kind is Kind.DAEMON:
            await self._mirror.until(lambda picture: readiness.daemon(picture, self._config, child.pid))
        elif program.kind is Kind.COORDINATOR:
            await self._mirror.until(lambda picture: readiness.coordinator(picture, self._identifier, child.pid))
            self._coordinator = self._mirror.picture.of(Coordinator)[self._identifier]
        elif program.kind is Kind.ENGINE:
            await self._mirror.until(lambda picture: readiness.engine(picture, program.name, child.pid))

    def moved(self, keeper: Keeper) -> None:
        self._tell()
        self._engine_moved.set()
        self._display.moved(keeper)
        for one in self._on_demand:
            one.heard(keeper)
        if keeper.told_to_stop:
            return
        if keeper.state is State.ENDED and keeper.program.kind is not Kind.ENGINE:
            self._core_lost.set()
        if keeper.state in (State.BACKING_OFF, State.ENDED) and not self._going_down:
            self._show_last_words(keeper.program.name)

    def say(self, text: str) -> None:
        self._display.say(text)

    def _show_last_words(self, name: str) -> None:
        words, log = self._run_dir.last_words(name), self._run_dir.log(name)
        self._display.say(f"{name}'s last words: {words} (all: {log})" if words else f"{name}'s log: {log}")

    async def _losing_core(self) -> None:
        await self._core_lost.wait()
        core = (keeper for keeper in self._keepers if keeper.program.kind is not Kind.ENGINE)
        lost = next(keeper.program for keeper in core if keeper.state is State.ENDED)
        raise NodeFailed(f"{lost.name} cannot be kept running", remedy=f"see {self._run_dir.log(lost.name)}")

    def _tell(self) -> None:
        """Other commands, by the run file, whenever it changes."""
        if not self._core_up or self._going_down or (run := self._run_file()) == self._written:
            return
        self._written = run
        try:
            self._run_dir.write(run)
        except OSError as error:
            self._display.say(f"{self._run_dir.run_file} cannot be written, other commands miss it: {error.strerror}")

    def _run_file(self) -> RunFile:
        return RunFile(
            pid=os.getpid(),
            ready=self._engines_settled,
            node=self._config.node,
            etcd=self._endpoints,
            gateway=self._coordinator.gateway_url,
            admin=self._coordinator.admin_url,
            socket=str(self._run_dir.socket),
            processes=(*map(self._process, self._keepers), *self._asleep()),
        )

    def _process(self, keeper: Keeper) -> Process:
        program, child = keeper.program, keeper.child
        log = str(self._run_dir.log(program.name))
        return Process(program.name, program.kind, child.pid if child else 0, log, program.url, keeper.state)

    def _asleep(self) -> list[Process]:
        """Engines that nobody needs now."""
        programs_ = [one.program for one in self._on_demand if one.keeper is None]
        return [
            Process(program.name, program.kind, 0, str(self._run_dir.log(program.name)), program.url, "stopped")
            for program in programs_
        ]

    async def _take_down(self, hurry: asyncio.Event) -> None:
        self._going_down = True
        for kinds in DOWN:
            await asyncio.gather(*(keeper.stop(hurry) for keeper in self._keepers if keeper.program.kind in kinds))
