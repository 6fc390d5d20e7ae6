"""The demo's run: start a node, force switches, carry a request across one, kill an engine, and report."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import time
from pathlib import Path

import aiohttp
import psutil
from rich.console import Console

from coordinator.core.model import Phase
from coordinator.demo import memcpy, scenario
from coordinator.demo.audit import Audit
from coordinator.demo.client import Answer, ask, connect
from coordinator.demo.node import Node, running_node
from coordinator.demo.prepare import Workspace
from coordinator.demo.reference import Reference
from coordinator.demo.report import (
    DeviceReport,
    InFlightReport,
    KilledReport,
    ModelReport,
    Report,
    SwitchReport,
)
from coordinator.demo.scenario import MODELS, Numbered, Prompt
from coordinator.sizes import parse_size
from coordinator.store import connect as connect_store
from coordinator.supervise.layout import RunFile

SETTLE_LIMIT_S = 60.0
RESTART_LIMIT_S = 300.0
FORCED = 5
"""Switches that took a victim, at least: each answered the request that had to wait for it."""
SETTLED = (Phase.RESIDENT, Phase.OFFLOADED)


async def run(workspace: Workspace, references: dict[str, Reference], console: Console) -> Report:
    """One run on a fresh node, which is stopped at the end. Raises `NodeFailed` and what requests raise."""
    yardstick = await asyncio.to_thread(memcpy.seconds_per_byte)
    console.print(f"one-thread memcpy on this machine: {1e-9 / yardstick:.1f} GB/s")
    async with running_node(workspace.config, workspace.run_dir) as node:
        with console.status("starting etcd, the node daemon, the coordinator and three vLLM engines …"):
            found = await node.wait_ready()
        console.print(f"gateway {found.gateway}   admin {found.admin}   etcd {found.etcd[0]}")
        store = connect_store(found.etcd)
        audit = Audit()
        following = asyncio.create_task(audit.follow(store))
        try:
            stage = Stage(found, audit, references, yardstick, console)
            report = await stage.play()
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
            await store.close()
    report.invariants["I6"] = left_nothing(node, found)
    return report


def left_nothing(node: Node, found: RunFile) -> bool:
    """I6, seen from outside: no process of the node lives, its socket and its run file are gone."""
    left = [process.name for process in found.processes if process.pid and _alive(process.pid)]
    return not left and not Path(found.socket).exists() and not node.run_dir.run_file.exists()


def _alive(pid: int) -> bool:
    """A zombie holds nothing."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class Stage:
    """The demo on a running node: every request it sends is checked against stock vLLM's answer."""

    def __init__(
        self, found: RunFile, audit: Audit, references: dict[str, Reference], yardstick: float, console: Console
    ) -> None:
        self._found = found
        self._audit = audit
        self._references = references
        self._yardstick = yardstick
        self._console = console
        self._client = connect(found.gateway)
        self._prompts = Numbered()
        self._cold: dict[str, float] = {}
        self._answers: list[bool] = []

    async def play(self) -> Report:
        await self._settle()
        self._cold = {model.name: self._audit.specs[model.name].cold_start for model in MODELS}
        switches = [await self._switch() for _ in range(len(MODELS) * scenario.ROUNDS)]
        in_flight = await self._carry_across()
        killed = await self._kill()
        await self._client.close()
        return Report(
            vllm=next(iter(self._references.values())).vllm,
            etcd=await self._etcd_version(),
            device=DeviceReport(driver="host", capacity_bytes=parse_size(scenario.CAPACITY)),
            models=[self._model(model.name) for model in MODELS],
            switches=switches,
            in_flight=in_flight,
            killed=killed,
            invariants=self._invariants(switches),
        )

    async def _switch(self) -> SwitchReport:
        """Ask the model that has been asleep longest, then ask it again while it is awake."""
        await self._settle()
        resident = self._in_phase(Phase.RESIDENT)
        target = self._asleep_longest()
        asleep, first = await self._ask(self._prompts.take(target))
        awoken = f"{target} is resident"
        await self._audit.until(lambda: self._audit.phase(target) is Phase.RESIDENT, SETTLE_LIMIT_S, awoken)
        awake, second = await self._ask(self._prompts.take(target))
        await self._settle()
        sources = [name for name in resident if self._audit.phase(name) is not Phase.RESIDENT]
        residency = self._audit.residency(target)
        report = SwitchReport(
            source=", ".join(sources),
            target=target,
            ttft_awake_s=awake.ttft_s,
            ttft_asleep_s=asleep.ttft_s,
            restore_s=sum(step.seconds for step in residency.steps if step.name in ("map", "copy")),
            bytes=residency.restored,
            d2h_bytes=sum(self._audit.residency(name).d2h for name in sources),
            memcpy_ratio=(asleep.ttft_s - awake.ttft_s) / (residency.restored * self._yardstick),
            cold_ratio=(self._cold[target] + awake.ttft_s) / asleep.ttft_s,
            outputs_identical=first and second,
        )
        self._console.print(
            f"  {report.source or 'free memory'} → {target}, {report.bytes / 1e6:.0f} MB: first token after "
            f"{asleep.ttft_s * 1e3:.0f} ms asleep, {awake.ttft_s * 1e3:.0f} ms awake; "
            f"{'same' if report.outputs_identical else 'OTHER'} tokens as stock vLLM"
        )
        return report

    async def _carry_across(self) -> InFlightReport:
        """A long answer is being written while its model has to leave the device and come back."""
        carried, kept = self._in_phase(Phase.RESIDENT)[:2]
        wanted = self._asleep_longest()
        self._console.print(f"  {carried} is writing a long answer while {wanted} needs its memory ({kept} is pinned)")
        before = await self._preemptions(carried)
        began = len(self._audit.history[carried])
        started = asyncio.Event()
        await self._admin(kept, "pin")
        async with asyncio.TaskGroup() as group:
            writing = group.create_task(self._ask(scenario.long_prompt(carried), started))
            await started.wait()
            await self._ask(self._prompts.take(wanted))
        await self._admin(kept, "unpin")
        answer, identical = writing.result()
        left = any(seen.residency.phase is Phase.OFFLOADED for seen in self._audit.history[carried][began:])
        recomputed = len(answer.tokens) if await self._preemptions(carried) > before else 0
        self._console.print(f"  … it {'left the device and ' if left else 'did NOT leave the device; it '}went on")
        return InFlightReport(outputs_identical=identical and left, recomputed_tokens=recomputed)

    async def _kill(self) -> KilledReport:
        """kill -9 of a resident engine: its pages come back, the others go on, and it is started again."""
        victim, *_ = self._in_phase(Phase.RESIDENT)
        spec = self._audit.specs[victim]
        [device] = spec.devices
        self._console.print(f"  kill -9 of {victim} (pid {spec.pid}) while it is resident")
        begun = time.monotonic()
        os.kill(spec.pid, signal.SIGKILL)
        await self._audit.until(
            lambda: spec.holder not in self._audit.owners(device), SETTLE_LIMIT_S, f"the pages of {victim} are back"
        )
        reclaimed = time.monotonic() - begun
        others = [(await self._ask(self._prompts.take(model.name)))[1] for model in MODELS if model.name != victim]
        with self._console.status(f"the others went on; {victim} is being started again …"):
            await self._audit.until(
                lambda: self._restarted(victim, spec.holder.nonce), RESTART_LIMIT_S, f"{victim} is started again"
            )
        _, back = await self._ask(self._prompts.take(victim))
        return KilledReport(engine=victim, reclaimed_s=reclaimed, others_ok=all(others) and back)

    async def _ask(self, prompt: Prompt, started: asyncio.Event | None = None) -> tuple[Answer, bool]:
        answer = await ask(self._client, prompt, started)
        identical = answer.tokens == self._references[prompt.model].tokens[prompt.text]
        self._answers.append(len(answer.tokens) == prompt.max_tokens)
        return answer, identical

    def _invariants(self, switches: list[SwitchReport]) -> dict[str, bool]:
        return {
            "I1": self._audit.one_holder(),
            "I2": all(self._answers),
            "I3": all(switch.outputs_identical for switch in switches),
            "I4": self._audit.within_capacity(),
            "I5": sum(bool(switch.source) for switch in switches) >= FORCED,
        }

    async def _settle(self) -> None:
        await self._audit.until(self._all_settled, SETTLE_LIMIT_S, "every model is resident or offloaded")

    def _all_settled(self) -> bool:
        return all(self._audit.phase(model.name) in SETTLED for model in MODELS)

    def _in_phase(self, phase: Phase) -> list[str]:
        return [model.name for model in MODELS if self._audit.phase(model.name) is phase]

    def _asleep_longest(self) -> str:
        asleep = self._in_phase(Phase.OFFLOADED)
        return min(asleep, key=lambda name: self._audit.history[name][-1].at)

    def _restarted(self, engine: str, old_nonce: str) -> bool:
        spec = self._audit.specs.get(engine)
        return spec is not None and spec.holder.nonce != old_nonce and self._audit.phase(engine) in SETTLED

    def _model(self, name: str) -> ModelReport:
        return ModelReport(name=name, bytes=self._audit.specs[name].footprint.weights, cold_start_s=self._cold[name])

    async def _preemptions(self, engine: str) -> float:
        """vLLM's own count of requests whose KV it gave up and computed again."""
        async with aiohttp.ClientSession() as http, http.get(f"{self._audit.specs[engine].url}/metrics") as reply:
            text = await reply.text()
        return sum(float(n) for n in re.findall(r"^vllm:num_preemptions_total\{[^}]*\} ([0-9.e+]+)$", text, re.M))

    async def _admin(self, model: str, action: str) -> None:
        async with (
            aiohttp.ClientSession(raise_for_status=True) as http,
            http.post(f"{self._found.admin}/v1/models/{model}/{action}"),
        ):
            pass

    async def _etcd_version(self) -> str:
        async with aiohttp.ClientSession() as http, http.get(f"{self._found.etcd[0]}/version") as reply:
            return str((await reply.json(content_type=None))["etcdserver"])
