"""`vnpu up`: a whole node in the foreground."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from coordinator import config as configuration
from coordinator.cli.progress import Progress, Told
from coordinator.errors import ConfigError
from coordinator.supervise.layout import RunDir
from coordinator.supervise.node import Node

INTERRUPTED = 130


def up(
    file: Path,
    run_dir: Path,
    without: Sequence[str],
    console: Console,
    python: str = sys.executable,
    *,
    watch: bool = False,
) -> int:
    """Runs until it is told to stop. Returns the exit code: 0 after SIGTERM, 130 after Ctrl-C. `python` runs the parts
    of the node."""
    config = configuration.load(file, os.environ)
    for name in without:
        if name not in config.models:
            raise ConfigError(
                f"{file}: models.{name}: there is no such model", remedy=f"known: {', '.join(config.models)}"
            )
    if set(config.models) - set(without) and importlib.util.find_spec("vllm") is None:
        raise ConfigError("vLLM is not installed in this Python", remedy="make setup, then .venv/bin/vnpu")
    progress = Progress(console)
    logging.basicConfig(handlers=[Told(progress.say)], level=logging.getLogger().level, force=True)
    try:
        node = Node(config, file, RunDir(run_dir), progress, os.environ, without, python, watch=watch)
        return asyncio.run(_up(node, progress))
    finally:
        progress.close()


async def _up(node: Node, progress: Progress) -> int:
    stop, hurry, received = asyncio.Event(), asyncio.Event(), set[signal.Signals]()

    def on_signal(number: signal.Signals) -> None:
        progress.close()
        received.add(number)
        progress.say("stopping everything now" if stop.is_set() else "stopping; once more to kill what lingers")
        (hurry if stop.is_set() else stop).set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, on_signal, number)
    await node.run(stop, hurry)
    progress.say("stopped")
    return INTERRUPTED if signal.SIGINT in received else 0
