"""What vNPU adds to vLLM's worker of each rank: the memory hands around it. `cpu_worker`, `cuda_worker` and
`npu_worker` put it in front of vLLM's own; they say how the device is reached and where KV blocks lie.

The `vnpu_*` methods are called by the agent through `collective_rpc`; they answer with a report as text and never raise
(see `engine_patch.report`). While memory is away the scheduler is paused, so that no step can come; one that comes
nevertheless ends the engine rather than reading foreign bytes. In eager mode steps may come while weights are still
copied: each layer waits for its own (`engine_patch.gating`). A compiled graph has no layers to wait in, so there the
wake blocks.
"""

from __future__ import annotations

import glob
import logging
import os
import resource
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol

from coordinator.core.model import Bytes, Order
from coordinator.store import prompt
from engine_patch import modules, report, settings, spin
from engine_patch.bus import Bus
from engine_patch.desk import Desk
from engine_patch.exchange import Exchange
from engine_patch.flight import Flight, fetches
from engine_patch.gating import Gates
from engine_patch.kv_blocks import KvBlocks
from engine_patch.kv_layout import books, scheduled_blocks
from engine_patch.memory import Hands, denied
from engine_patch.report import Report
from engine_patch.restoring import Cancelled, MemoryFault
from engine_patch.sharded_linear.sharing import open_sharing
from engine_patch.stages import Owners
from engine_patch.stopwatch import Stopwatch
from native import _native
from native.client import Client
from native.link import DaemonRefused
from transfer.errors import TransferError

log = logging.getLogger("vllm.vnpu.worker")

ADMISSION_S = 3600.0
"""How long a start-up waits for its token. The leader decides; this only ends what nobody decides about."""
START_CALL_S = 300.0
DRAIN_S = 10.0
"""How long a switch waits for KV blocks that another engine is pulling, and for steps in flight."""
PAUSE_S = 0.2
TELL_S = 60.0
"""How long the agent is told that a restore has settled: as long as it waits for that (`errands.MEMORY_S`)."""
SHARED_MEMORY = Path("/dev/shm")


class Pulls(Protocol):
    """Transfers of KV that must stop while the memory is away."""

    def sleep(self, timeout_s: float) -> bool: ...

    def wake(self) -> None: ...


class VnpuWorker:
    """Stands before one of vLLM's workers among the bases; see the module."""

    rank: int
    local_rank: int
    vllm_config: Any
    model_config: Any
    model_runner: Any
    device: Any

    # ---- what differs from device to device

    def vnpu_bus(self, driver: _native.Driver, birth: settings.Birth) -> Bus:
        """How the device's bytes are reached."""
        raise NotImplementedError

    def vnpu_ordinal(self) -> int:
        """The device's number as the vendor counts it in this process."""
        return self.local_rank

    def vnpu_kv(self, kv_cache_config: Any, foreign: bool) -> tuple[int, frozenset[int], KvBlocks]:
        """Address that the books' offsets count from, addresses of the blocks of memory that hold KV, the books.
        `foreign`: somebody writes blocks that nobody tells of.

        Here: of vLLM's one KV buffer (0.32). Raises MemoryFault where it is not in device pages.
        """
        base = self._find_kv()
        return base, frozenset((base,)), books(kv_cache_config, everything=foreign)

    def vnpu_pulls(self) -> Pulls | None:
        """Our KV connector in this worker, which reads and writes KV by its address: not on a device."""
        return None

    def vnpu_pulled(self, scheduler_output: Any) -> set[int]:
        """Block ids that the connector will write in this step."""
        return set()

    # ---- around vLLM's own

    def init_device(self) -> None:
        """Wait for admission first: from here to ready the engine holds the device's memory token."""
        birth, found = settings.inherited(), settings.required()
        _allow_many_files()
        device = found.device(self.rank)
        client = Client(birth.socket, birth.engine, birth.nonce, "worker", self.rank)
        _await_admission(client, found)
        driver = _native.open_driver(birth.drivers[self.rank], self.vnpu_ordinal())
        chunk = client.connect().chunk[device]
        self._bus = self.vnpu_bus(driver, birth)
        connector = self.vllm_config.kv_transfer_config is not None  # it keeps the whole buffer, whatever the budget
        kv_keep = None if connector else found.kv_keep
        share = found.share_weights
        self._hands = Hands(driver, client, device, chunk, self._bus, kv_keep=kv_keep, share=share)
        self._desk, self._turn = Desk(birth.desk), 0
        self._settling, self._waking = 0, threading.Lock()
        """Whose end lets readers of KV in (a restore by number, 0: none), and held while it does."""
        self._flight = Flight(fetched=fetches(self.rank, self.vllm_config))
        self._start = Stopwatch()
        with self._start.step("map"):
            self._hands.admit(Bytes(weights=birth.weights - birth.shared, kv=birth.kv), START_CALL_S)
        with self._start.step("device"):
            super().init_device()  # type: ignore[misc]  # the next base is vLLM's worker

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        self._exchange: Exchange | None = None
        if self._bus.readable:
            self._exchange = Exchange(self.rank, self.vllm_config, self._hands, str(self.device))
        else:
            log.info("weights are neither served nor fetched: the device's pages cannot be read by address")
        self._sharing = open_sharing(self.vllm_config, self._hands, settings.inherited())
        packed = modules.Packed(self._hands.weights.arena)
        with self._start.step("load"), self._hands.allocating(self._hands.weights):
            with self._sharing.building(), packed.noting(self._sharing):
                super().load_model(*args, **kwargs)  # type: ignore[misc]
            self._sharing.loaded()
        self._hands.trim(self._hands.weights)
        self._hands.move_in()
        with self._sharing.meeting(self._start):
            self._hands.partners = self._sharing
        self._sharing.ready()
        self._owners, self._gates = self._order(packed)
        if self._exchange is not None and not self._sharing.active:
            self._exchange.loaded(self.model_runner.get_model())

    def _order(self, packed: modules.Packed) -> tuple[Owners | None, Gates | None]:
        """In which order weights come back, and the gates of who waits for them; none where graphs are compiled, and
        where a layer's weights may come from another rank, whose gates are not known here."""
        if self._sharing.active:
            log.info("layers are shared: requests wait until all ranks have their weights back")
            return None, None
        if not self.model_config.enforce_eager:
            log.info("compiled graphs: requests wait until all weights are back; --enforce-eager lets layers wait")
            return None, None
        model = self.model_runner.get_model()
        stages = modules.stages(model, packed)
        weights = self._hands.weights
        owners = modules.owners(model, packed, weights.base, self._hands.live(weights), stages)
        return owners, Gates(stages, self._hands.await_stage)

    def initialize_from_config(self, kv_cache_config: Any) -> None:
        _forget_meeting_place()
        with self._start.step("kv"), self.vnpu_allocating_kv():
            super().initialize_from_config(kv_cache_config)  # type: ignore[misc]
        self._hands.trim(self._hands.kv)
        self._pulls = self.vnpu_pulls()
        foreign = self.vllm_config.kv_transfer_config is not None and self._pulls is None
        self._kv_at, self._kv_blocks, self._books = self.vnpu_kv(kv_cache_config, foreign)

    def vnpu_allocating_kv(self) -> AbstractContextManager[None]:
        """Around vLLM's `initialize_from_config`."""
        return self._hands.allocating(self._hands.kv)

    def _find_kv(self) -> int:
        """Where vLLM's one KV buffer lies. A model without KV cache has none."""
        caches = self.model_runner.kv_caches
        if not caches:
            return self._hands.kv.base
        address: int = caches[0].untyped_storage().data_ptr()
        starts = {self._hands.kv.base + offset for offset, _ in self._hands.live(self._hands.kv)}
        if address not in starts:
            raise MemoryFault("the KV cache did not land in device pages", remedy="report your versions of vLLM, torch")
        return address

    def execute_model(self, scheduler_output: Any) -> Any:
        if not self._hands.resident:
            return self._without_memory(scheduler_output)
        self._hands.used = True
        spin.work()
        if self._gates is not None:
            settled = self._hands.settled
            self._gates.pass_first(settled)
            if settled:
                self._wake_pulls()  # what this step offers would wait for the thread that settles
        self._books.use(scheduled_blocks(scheduler_output) | self.vnpu_pulled(scheduler_output))
        with self._exchange.stepping() if self._exchange is not None else nullcontext():
            return self._flight.executed(super().execute_model(scheduler_output))  # type: ignore[misc]

    def _without_memory(self, scheduler_output: Any) -> Any:
        """A client that hangs up while its request is frozen makes vLLM's scheduler send a step of no tokens, paused or
        not: the runner only forgets the request."""
        if scheduler_output.total_num_scheduled_tokens:
            raise RuntimeError("a step was scheduled while this engine's memory is away")
        return super().execute_model(scheduler_output)  # type: ignore[misc]

    def sample_tokens(self, grammar_output: Any) -> Any:
        return self._flight.sampled(super().sample_tokens(grammar_output))  # type: ignore[misc]

    # ---- called by the agent

    def vnpu_seal(self) -> str:
        def work() -> dict[str, Any]:
            self._sharing.still()
            with self._start.step("seal"):
                digest = self._hands.seal(self._owners)
            self._sharing.ready()
            return {"digest": digest, "steps": tuple(self._start.steps)}

        return self._answer(work)

    def vnpu_offload(self, live: list[int]) -> str:
        """`live`: KV blocks that are still needed, as the scheduler has it."""

        def work() -> dict[str, Any]:
            spin.rest()
            self._flight.drain(DRAIN_S)
            self._books.forget_all_but(live)
            self._sharing.part()
            self._still_pulls()
            try:
                saved, steps = self._hands.offload(self._keep())
            finally:
                if self._hands.resident:
                    self._wake_pulls()
            return {"kv_saved": saved, "d2h": self._hands.copied_out, "steps": steps}

        return self._answer_soon(work)

    def vnpu_restore(self) -> str:
        def work() -> dict[str, Any]:
            self._turn += 1
            steps = self._hands.begin(beside=self._gates is not None)
            if self._gates is None:
                moved, settled = self._hands.settle()
                self._sharing.ready()
                self._wake_pulls()
                return {"restored": moved, "steps": (*steps, *settled)}
            self._gates.install()
            self._settling = self._turn
            threading.Thread(target=self._settle, args=(self._turn,), name="vnpu-settle", daemon=True).start()
            return {"steps": steps, "turn": self._turn, "pending": True}

        return self._answer_soon(work)

    def _settle(self, turn: int) -> None:
        """In a thread of its own: tell the agent when everything is back. A forward pass that waits at a gate which
        stays shut never gets the bytes; the agent ends the engine."""

        def work() -> dict[str, Any]:
            moved, steps = self._hands.settle()
            with self._waking:
                if turn == self._settling:
                    self._wake_pulls()
            return {"restored": moved, "steps": steps, "turn": turn}

        prompt.be_prompt()
        try:
            self._tell(self._report(work, turn=turn))
        except Cancelled:
            log.info("restore %d was taken back", turn)

    def _tell(self, settled: Report) -> None:
        """Until the agent has heard it, which ends the engine otherwise: its process may be busy for a moment."""
        until = time.monotonic() + TELL_S
        while True:
            try:
                self._desk.settled(settled)
                return
            except TransferError as error:
                log.warning("the agent was not told about restore %d: %s", settled.turn, error)
                if time.monotonic() > until:
                    return
            time.sleep(PAUSE_S)

    def _wake_pulls(self) -> None:
        """Not before all of the cache is back: what is copied back must not land on what was pulled. Idempotent."""
        if self._pulls is not None:
            self._pulls.wake()

    def _still_pulls(self) -> None:
        """Before KV leaves. Raises MemoryFault."""
        if self._pulls is not None and not self._pulls.sleep(DRAIN_S):
            raise MemoryFault("another engine does not let go of KV blocks", remedy="see the log of its worker")

    def vnpu_undo(self) -> str:
        def work() -> dict[str, Any]:
            with self._waking:
                self._settling = 0
            self._still_pulls()  # this rank's own restore may have gone through
            self._hands.drop()
            return {}

        return self._answer(work)

    def _keep(self) -> list[tuple[int, int]]:
        """Addresses of written KV blocks, and whatever else was allocated together with the KV cache."""
        others = [
            (self._hands.kv.base + offset, length)
            for offset, length in self._hands.live(self._hands.kv)
            if self._hands.kv.base + offset not in self._kv_blocks
        ]
        return [(self._kv_at + offset, length) for offset, length in self._books.keep()] + others

    def _answer(self, work: Callable[[], dict[str, Any]]) -> str:
        return report.encode(self._report(work)).decode()

    def _answer_soon(self, work: Callable[[], dict[str, Any]]) -> str:
        """Of a switch: beside the copy that it starts, this thread would wait for whole slices. The threads that copy
        were not begun here (`Copier`), so they keep theirs."""
        with prompt.promptly():
            return self._answer(work)

    def _report(self, work: Callable[[], dict[str, Any]], **fields: Any) -> Report:
        try:
            fields |= work()
        except Cancelled:
            raise
        except DaemonRefused as refused:
            fields |= {"denied": str(refused)} if denied(refused) else {"error": str(refused)}
        except Exception as error:
            # vLLM's channel must not see it; the agent ends the engine for it.
            log.exception("a memory operation failed")
            fields |= {"error": f"{type(error).__name__}: {error}"}
        return Report(rank=self.rank, pid=os.getpid(), held=self._hands.held, need=self._hands.need, **fields)


def _await_admission(client: Client, found: settings.Settings) -> None:
    """Until a restore of this engine is open on every one of its devices (PROTOCOL rule 5): a rank whose own device is
    open while another's is refused must not touch anything."""
    for rank, name in enumerate(found.devices):
        log.info("waiting for admission to %s", name)
        while client.await_open(found.device(rank), ADMISSION_S).order != Order.RESTORE:
            time.sleep(PAUSE_S)


def _forget_meeting_place() -> None:
    """vLLM's ranks meet in named files, 4 MiB each, which nobody removes. All ranks have answered calls by now, so each
    has mapped what it needs: without names they go with the last process, however that ends."""
    ident = os.environ.get("VLLM_DIST_IDENT", "")
    for file in SHARED_MEMORY.glob(f"{glob.escape(ident)}-*-cpushm_*"):
        file.unlink(missing_ok=True)


def _allow_many_files() -> None:
    """Each mapped chunk holds a descriptor."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
