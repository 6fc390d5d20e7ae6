"""The demo's set-up, made once: three models, and stock vLLM's answers to every prompt that a run may send."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import msgspec
import yaml
from rich.progress import Progress

from coordinator.demo.node import own_environment
from coordinator.demo.reference import Reference, digest
from coordinator.demo.scenario import MODELS, DemoModel, Prompt, all_prompts, configuration
from coordinator.errors import VnpuError


class Workspace:
    """Where a run of the demo keeps its things, all below one folder."""

    def __init__(self, root: Path) -> None:
        self.root = root = root.absolute()
        self.models = root / "models"
        self.references = root / "reference"
        self.config = root / "vnpu.yaml"
        self.run_dir = root / "run"
        self.report = root / "report.json"
        self.log = root / "demo.log"


def prepare(workspace: Workspace, progress: Progress) -> dict[str, Reference]:
    """Make what is missing, show how far it is, and return the reference answers by model name."""
    workspace.references.mkdir(parents=True, exist_ok=True)
    task = progress.add_task("models and stock answers", total=2 * len(MODELS))
    references = {}
    for model in MODELS:
        progress.update(task, description=f"making {model.name} ({model.arch}, {model.size})")
        _run(["-m", "coordinator.cli.main", "make-model", str(workspace.models / model.name),
              "--arch", model.arch, "--size", model.size], workspace.root / "make-model.log")  # fmt: skip
        progress.advance(task)
        progress.update(task, description=f"asking stock vLLM as {model.name}")
        references[model.name] = _reference(workspace, model)
        progress.advance(task)
    workspace.config.write_text(yaml.safe_dump(configuration(workspace.models), sort_keys=False))
    return references


def _reference(workspace: Workspace, model: DemoModel) -> Reference:
    """Stock answers of `model`, made anew when the model or the prompts changed."""
    wanted = [prompt for prompt in all_prompts() if prompt.model == model.name]
    stored = workspace.references / f"{model.name}.json"
    if not _still_true(stored, workspace.models / model.name, wanted):
        _ask_stock(workspace, model, wanted, stored)
    return msgspec.json.decode(stored.read_bytes(), type=Reference)


def _still_true(stored: Path, model: Path, wanted: list[Prompt]) -> bool:
    try:
        reference = msgspec.json.decode(stored.read_bytes(), type=Reference)
    except (FileNotFoundError, msgspec.MsgspecError):
        return False
    answered = all(len(reference.tokens.get(prompt.text, ())) == prompt.max_tokens for prompt in wanted)
    return answered and reference.model == digest(str(model))


def _ask_stock(workspace: Workspace, model: DemoModel, prompts: list[Prompt], out: Path) -> None:
    asked = workspace.references / f"{model.name}.prompts.json"
    asked.write_bytes(msgspec.json.encode(prompts))
    arguments = ["-m", "coordinator.demo.reference", str(workspace.models / model.name), str(asked), str(out)]
    _run(arguments, workspace.references / f"{model.name}.log")


def stock_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment of a stock vLLM process: nothing of vNPU's, offline, bound to one core as the engines are."""
    return own_environment(environ) | {
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_OMP_THREADS_BIND": str(min(os.sched_getaffinity(0))),
    }


def _run(arguments: list[str], log: Path) -> None:
    with log.open("wb") as output:
        done = subprocess.run(
            [sys.executable, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=stock_environment(os.environ),
        )
    if done.returncode:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
        raise VnpuError(f"'{' '.join(arguments[:3])}' failed:\n{tail}", remedy=f"the whole output is in {log}")
