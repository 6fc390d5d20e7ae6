"""`python -m coordinator --config vnpu.yaml --etcd URL[,URL] [--id ID]`: scheduler, gateway and admin API.

Any number of them may run: one leads, all route. SIGTERM and SIGINT end it in order; a second one at once. Exit codes:
0 done, 1 failed, 2 wrong use or configuration.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import uvloop

from coordinator.admin.app import Settings as AdminSettings
from coordinator.config import Config, load
from coordinator.configured import names, scheduler
from coordinator.errors import ConfigError, StoreUnavailable, VnpuError
from coordinator.gateway.settings import Settings as GatewaySettings
from coordinator.log_level import log_level
from coordinator.process import log_to_stderr, raise_file_limit, settle
from coordinator.reload import ConfigFile
from coordinator.runtime import Runtime, Settings
from coordinator.store import connect
from coordinator.store.etcd import EtcdStore
from coordinator.store.preflight import preflight

log = logging.getLogger("coordinator")

RETRY_S = 1.0
"""Between looks for an etcd that is not there yet."""


def main(argv: Sequence[str] | None = None, environ: Mapping[str, str] = os.environ) -> int:
    """The exit code."""
    options = _parser().parse_args(argv)
    try:
        config = load(options.config, environ)
        log_to_stderr(log_level(environ, config.log.level))
        raise_file_limit()
        store = connect(_endpoints(options.etcd, config, environ), environ=environ, vetted=True)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            told = settings(config, options.id, environ)
            file = ConfigFile(options.config, environ, config, options.watch_config, options.supervised)
            settle()
            return runner.run(_serve(told, file, store))
    except ConfigError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2


def settings(config: Config, identifier: str, environ: Mapping[str, str]) -> Settings:
    """What the process around the core is told."""
    trusted = tuple(host.strip() for host in environ.get("VNPU_ENGINE_HOSTS", "").split(",") if host.strip())
    gateway, admin, known = config.gateway, config.admin, names(config)
    return Settings(
        id=identifier,
        gateway=GatewaySettings(
            host=gateway.listen.host,
            port=gateway.listen.port,
            api_keys=gateway.api_keys,
            max_queue=gateway.max_queue,
            models=known.models,
            aliases=known.aliases,
            prefill=known.prefill,
            trusted_hosts=trusted,
        ),
        admin=AdminSettings(
            host=admin.listen.host,
            port=admin.listen.port,
            api_key=admin.api_key,
            roles=admin.roles,
            trusted_hosts=trusted,
        ),
    )


async def _serve(told: Settings, file: ConfigFile, store: EtcdStore) -> int:
    """Until a signal. Expected failures end in one line, defects in a traceback. Raises ConfigError where this etcd
    must not be used."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _signalled, stop, number)
    try:
        if not await _fit(store, stop):
            return 0
        return await _coordinate(Runtime(told, store, scheduler(file.config), file=file), stop)
    finally:
        await store.close()


async def _coordinate(runtime: Runtime, stop: asyncio.Event) -> int:
    failures: list[str] = []
    try:
        await runtime.run(stop)
    except* (VnpuError, OSError) as errors:
        failures.extend(str(error) for error in _leaves(errors))
    for failure in failures:
        log.error("%s", failure)
    return 1 if failures else 0


async def _fit(store: EtcdStore, stop: asyncio.Event) -> bool:
    """Whether this etcd may be used, as soon as it answers; False when told to stop before."""
    while not stop.is_set():
        try:
            await preflight(store)
            return True
        except StoreUnavailable as error:
            log.warning("waiting for etcd: %s", error)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(RETRY_S):
                await stop.wait()
    return False


def _signalled(stop: asyncio.Event, number: signal.Signals) -> None:
    if stop.is_set():
        log.warning("%s again: ending at once", number.name)
        os._exit(1)
    log.info("%s: ending in order", number.name)
    stop.set()


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    found: list[BaseException] = []
    for error in group.exceptions:
        found.extend(_leaves(error) if isinstance(error, BaseExceptionGroup) else [error])
    return found


def _endpoints(given: str, config: Config, environ: Mapping[str, str]) -> list[str]:
    """Named on the command line, in the environment, or in the configuration, in this order."""
    named = given or environ.get("VNPU_ETCD_ENDPOINTS", "") or environ.get("ETCD_ENDPOINTS", "")
    endpoints = [url.strip() for url in named.split(",") if url.strip()] or list(config.endpoints)
    if not endpoints:
        raise ConfigError("no etcd endpoint is known", remedy="name one by --etcd http://host:2379")
    return endpoints


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m coordinator", description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="the node's vnpu.yaml")
    parser.add_argument("--etcd", default="", metavar="URL[,URL]", help="etcd's endpoints")
    parser.add_argument(
        "--watch-config", action="store_true", help="read the configuration again whenever the file changes"
    )
    parser.add_argument(
        "--supervised", action="store_true", help="whoever starts this starts and ends engines too, as the file says"
    )
    own = f"{socket.gethostname()}-{os.getpid()}"
    parser.add_argument("--id", default=own, help="this coordinator's name in etcd, unique among all")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
