"""The Compose files of `docker/`, run for real: found command, own project name, own ports, nothing left behind."""

from __future__ import annotations

import json
import os
import secrets
import shlex
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from coordinator.supervise.ports import free_port

ROOT = Path(__file__).parents[2]
LABEL = "com.docker.compose.project"
OBSERVED = ("--profile", "observability")
NO_COMPOSE = (
    "no Compose here: install Docker with its Compose plugin, or set VNPU_COMPOSE to a command that takes the same "
    "arguments, e.g. VNPU_COMPOSE='podman-compose'"
)


def compose_command(environ: Mapping[str, str] = os.environ) -> list[str]:
    """`VNPU_COMPOSE`, else `compose-here` beside the checkout, else Docker's own. Raises LookupError with a remedy."""
    if environ.get("VNPU_COMPOSE"):
        return shlex.split(environ["VNPU_COMPOSE"])
    beside = ROOT.parent / "shared" / "tools" / "compose-here"
    if beside.exists():
        return [str(beside)]
    if shutil.which("docker"):
        return ["docker", "compose"]
    raise LookupError(NO_COMPOSE)


class ComposeFailed(Exception):
    """A Compose command failed; the message is what it said."""


class Stack:
    """One project: `compose.yaml` with the test overlay on it."""

    def __init__(self) -> None:
        self._command = compose_command()
        self._engine = "docker" if self._command[0] == "docker" else "podman"
        self.project = f"vnpu-test-{os.getpid()}"
        self.key = secrets.token_hex(16)
        self.gateway = f"http://127.0.0.1:{free_port()}"
        self.admin = f"http://127.0.0.1:{free_port()}"
        self.prometheus = f"http://127.0.0.1:{free_port()}"
        self._environ = {
            **os.environ,
            "VNPU_ADMIN_KEY": self.key,
            "VNPU_API_KEY": self.key,
            "VNPU_GATEWAY_PORT": self.gateway.rpartition(":")[2],
            "VNPU_ADMIN_PORT": self.admin.rpartition(":")[2],
            "VNPU_PROMETHEUS_PORT": self.prometheus.rpartition(":")[2],
        }

    def compose(self, *words: str, timeout_s: float = 300) -> str:
        """Runs one command; returns its output. Raises ComposeFailed."""
        files = ["-p", self.project, "-f", "docker/compose.yaml", "-f", "docker/compose.test.yaml"]
        return self._run([*self._command, *files, *words], timeout_s)

    def down(self) -> None:
        self.compose(*OBSERVED, "down", "-v", "-t", "20")

    def residue(self) -> dict[str, str]:
        """What carries this project's label: containers, volumes, networks; empty when nothing is left."""
        found = {
            "containers": self._labelled("ps", "-aq"),
            "volumes": self._labelled("volume", "ls", "-q"),
            "networks": self._labelled("network", "ls", "-q"),
        }
        return {kind: names for kind, names in found.items() if names}

    def logs(self) -> str:
        """The last lines of every service, for a test's failure message."""
        parts = []
        for service in ("etcd", "models", "coordinator", "daemon", "engine-a", "engine-b"):
            try:
                parts.append(f"--- {service}\n{self.compose('logs', '--tail', '40', service)}")
            except ComposeFailed as error:
                parts.append(f"--- {service}: {error}")
        return "\n".join(parts)

    def ask(self, url: str, body: object = None, timeout_s: float = 330) -> Any:
        """GET, or POST of JSON; the decoded answer. Raises urllib's errors."""
        headers = {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=timeout_s) as answer:
            return json.load(answer)

    def complete(self, model: str, prompt: str) -> str:
        """Greedy text of `model`, through the gateway."""
        body = {"model": model, "prompt": prompt, "max_tokens": 16, "temperature": 0, "ignore_eos": True}
        return str(self.ask(f"{self.gateway}/v1/completions", body)["choices"][0]["text"])

    def engines(self) -> dict[str, dict[str, Any]]:
        """By id, as the leader knows them."""
        return {engine["id"]: engine for engine in self.ask(f"{self.admin}/v1/engines", timeout_s=10)["engines"]}

    def phases(self) -> dict[str, str]:
        return {name: engine["phase"] for name, engine in self.engines().items()}

    def until(self, wanted: Callable[[], bool], what: str, limit_s: float) -> None:
        """Looks once a second (these processes are in containers: there is no event to wait for). Raises
        TimeoutError with the logs."""
        deadline = time.monotonic() + limit_s
        while not _holds(wanted):
            if time.monotonic() > deadline:
                raise TimeoutError(f"not within {limit_s:.0f} s: {what}\n{self.logs()}")
            time.sleep(1)

    def _labelled(self, *words: str) -> str:
        return self._run([self._engine, *words, "--filter", f"label={LABEL}={self.project}"], 60).strip()

    def _run(self, command: list[str], timeout_s: float) -> str:
        try:
            done = subprocess.run(
                command, cwd=ROOT, env=self._environ, capture_output=True, text=True, timeout=timeout_s, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise ComposeFailed(f"{shlex.join(command)}: not done in {timeout_s:.0f} s") from error
        if done.returncode != 0:
            raise ComposeFailed(f"{shlex.join(command)}: {done.stdout[-4000:]}\n{done.stderr[-4000:]}")
        return done.stdout


def _holds(wanted: Callable[[], bool]) -> bool:
    try:
        return wanted()
    except (OSError, urllib.error.URLError, KeyError, ValueError):
        return False  # not up yet, or on its way down
