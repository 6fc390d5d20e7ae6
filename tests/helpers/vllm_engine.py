"""A real vLLM engine process, started by the ordinary command."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import aiohttp
import psutil

from coordinator.supervise.ports import free_port

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 600.0


class VllmEngine:
    """Killed with all its processes at the end of the `async with` block where it still lives."""

    def __init__(self, process: asyncio.subprocess.Process, engine: str, port: int, log: Path) -> None:
        self._process = process
        self.engine = engine
        self.port = port
        self.log = log

    @classmethod
    async def start(
        cls,
        folder: Path,
        etcd: str,
        engine: str,
        model: Path,
        *,
        node: str,
        kv: int,
        more: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> VllmEngine:
        port = free_port()
        environ = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "VNPU_ETCD_ENDPOINTS": etcd,
            "VNPU_NODE": node,
            "VNPU_ENGINE_ID": engine,
            "VNPU_LEASE_TTL": "30",  # longer than a crowded machine is away from an engine that is well
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "0",
            **(environment or {}),
        }
        command = [
            sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model),
            "--served-model-name", engine, "--host", "127.0.0.1", "--port", str(port), "--enforce-eager",
            "--dtype", "bfloat16", "--max-model-len", "1024", "--max-num-seqs", "8", "--block-size", "32",
            "--kv-cache-memory-bytes", str(kv), *more,
        ]  # fmt: skip
        log = folder / f"{engine}.log"
        with log.open("ab") as file:
            process = await asyncio.create_subprocess_exec(*command, env=environ, cwd=folder, stdout=file, stderr=file)
        return cls(process, engine, port, log)

    async def __aenter__(self) -> VllmEngine:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        family = self.family() if self._process.returncode is None else []
        for process in family:
            process.kill()
        await self._process.wait()
        await asyncio.to_thread(psutil.wait_procs, family, PATIENCE_S)

    def family(self) -> list[psutil.Process]:
        """The API server and everything below it."""
        top = psutil.Process(self._process.pid)
        return [top, *top.children(recursive=True)]

    def worker(self) -> psutil.Process:
        return next(p for p in self.family() if "VLLM::Worker" in " ".join(p.cmdline()))

    async def ended(self) -> int:
        async with asyncio.timeout(PATIENCE_S):
            return await self._process.wait()

    async def complete(self, prompt: str, tokens: int = 48, *, salt: str = "") -> list[int]:
        """Greedy token ids. Another `salt` finds nothing in the prefix cache."""
        body = {**self._body(prompt, tokens), **({"cache_salt": salt} if salt else {})}
        async with self._session() as session, session.post(self._url("completions"), json=body) as response:
            assert response.status == 200, await response.text()
            answer = await response.json()
        ids: list[int] = answer["choices"][0]["token_ids"]
        return ids

    async def ask(self, prompt: str, tokens: int, transfer: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The whole answer to a greedy completion that finds nothing in the prefix cache; `transfer`: its
        kv_transfer_params."""
        body = {**self._body(prompt, tokens), "cache_salt": secrets.token_hex(8)}
        if transfer is not None:
            body["kv_transfer_params"] = dict(transfer)
        async with self._session() as session, session.post(self._url("completions"), json=body) as response:
            assert response.status == 200, await response.text()
            answer: dict[str, Any] = await response.json()
        return answer

    async def ready(self) -> None:
        """Until it serves; for an engine outside of vNPU, which nobody else waits for."""
        async with asyncio.timeout(PATIENCE_S), self._session() as session:
            while True:
                assert self._process.returncode is None, self.log.read_text()[-3000:]
                try:
                    async with session.get(f"http://127.0.0.1:{self.port}/health") as response:
                        if response.status == 200:
                            return
                except aiohttp.ClientError:
                    await asyncio.sleep(0.2)

    async def stream(self, prompt: str, tokens: int) -> AsyncIterator[dict[str, Any]]:
        """The events of a greedy completion as they come."""
        body = {**self._body(prompt, tokens), "stream": True}
        async with self._session() as session, session.post(self._url("completions"), json=body) as response:
            assert response.status == 200, await response.text()
            async for line in response.content:
                data = line.decode().strip().removeprefix("data: ")
                if data and data != "[DONE]":
                    yield json.loads(data)

    async def post(self, prompt: str) -> tuple[int, Any]:
        """Status and JSON, whatever they are."""
        async with self._session() as session, session.post(self._url("completions"), json=self._body(prompt, 4)) as r:
            return r.status, await r.json()

    async def metric(self, name: str) -> float:
        """The first sample of this name on the engine's /metrics."""
        async with self._session() as session, session.get(f"http://127.0.0.1:{self.port}/metrics") as response:
            lines = (await response.text()).splitlines()
        return next(float(line.rsplit(maxsplit=1)[1]) for line in lines if line.startswith(name))

    async def together(self, prompts: Sequence[str], tokens: int, *, salt: str) -> list[list[int]]:
        """Greedy token ids of requests that all wait before the first of them is scheduled, so that every run has the
        same batches. Through `ProbeGate`."""
        await self.probe("pause")
        body = {**self._body("", tokens), "prompt": list(prompts), "cache_salt": salt}
        async with self._session() as session, asyncio.timeout(PATIENCE_S):
            asked = asyncio.create_task(session.post(self._url("completions"), json=body))
            while await self.probe("given") < len(prompts):
                assert not asked.done(), await (await asked).text()
                await asyncio.sleep(0.05)
            await self.probe("resume")
            async with await asked as response:
                assert response.status == 200, await response.text()
                choices = (await response.json())["choices"]
        return [choice["token_ids"] for choice in sorted(choices, key=lambda choice: int(choice["index"]))]

    async def probe(self, method: str) -> Any:
        """What rank 0's `probe_<method>` answers."""
        return (await self.probes(method))[0]

    async def probes(self, method: str) -> list[Any]:
        """What each rank's `probe_<method>` answers."""
        url = f"http://127.0.0.1:{self.port}/probe/{method}"
        async with self._session() as session, session.post(url) as response:
            assert response.status == 200, await response.text()
            answers: list[Any] = await response.json()
        return answers

    def _session(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=PATIENCE_S))

    def _url(self, what: str) -> str:
        return f"http://127.0.0.1:{self.port}/v1/{what}"

    def _body(self, prompt: str, tokens: int) -> dict[str, Any]:
        return {
            "model": self.engine,
            "prompt": prompt,
            "max_tokens": tokens,
            "temperature": 0,
            "ignore_eos": True,
            "return_token_ids": True,
        }


def resident_bytes(pid: int, start: int, length: int) -> int:
    """Bytes of physical memory that back `[start, start + length)` of a process (smaps, proc(5))."""
    total, inside = 0, False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        head = line.split(maxsplit=1)[0]
        if "-" in head and not head.endswith(":"):
            low, high = (int(part, 16) for part in head.split("-"))
            inside = start <= low and high <= start + length
        elif inside and head == "Rss:":
            total += int(line.split()[1]) * 1024
    return total
