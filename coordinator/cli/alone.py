"""`vnpu daemon`, `vnpu coordinator`, `vnpu engine`: one process of a node, as the configuration has it.

Each becomes the plain command by `exec`, so that what runs is what `--print` shows.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

import msgspec

from coordinator import config as configuration
from coordinator.config import Config
from coordinator.errors import ConfigError
from coordinator.placement import Engine, engines
from coordinator.store.access import credentials_apart
from coordinator.store.floor import development
from coordinator.supervise import programs
from coordinator.supervise.engine_command import Command, cores_by_engine, engine_command, spare_core
from coordinator.supervise.keeper import Program
from coordinator.supervise.layout import NotRunning, RunDir
from coordinator.supervise.ports import free_port


class Asked(msgspec.Struct, frozen=True):
    """What the three commands have in common on their command lines."""

    file: Path
    run_dir: RunDir
    etcd: str
    show: bool
    as_json: bool

    @classmethod
    def of(cls, args: argparse.Namespace, file: Path) -> Asked:
        return cls(file, RunDir(Path(args.run_dir)), args.etcd or "", args.show, args.json)


def daemon(asked: Asked) -> int:
    config = configuration.load(asked.file, os.environ)
    etcd, secrets = _reached(config, asked, os.environ)
    if not (asked.show or asked.as_json):
        asked.run_dir.daemon.mkdir(mode=0o700, parents=True, exist_ok=True)
    return _become(programs.daemon(config, etcd, asked.run_dir, sys.executable), secrets, asked)


def coordinator(asked: Asked, identifier: str | None, *, watch: bool = False) -> int:
    config = configuration.load(asked.file, os.environ)
    etcd, secrets = _reached(config, asked, os.environ)
    identifier = identifier or f"{config.node}-{os.getpid()}"
    program = programs.coordinator(config, asked.file.absolute(), etcd, identifier, sys.executable, watch=watch)
    return _become(program, secrets, asked)


def engine(asked: Asked, name: str, port: int | None, cores: str | None) -> int:
    config = configuration.load(asked.file, os.environ)
    model = _engine_of(asked.file, engines(config), name).model
    ours = sorted(os.sched_getaffinity(0))
    bind = cores or os.environ.get("VLLM_CPU_OMP_THREADS_BIND") or cores_by_engine(config, ours)[name]
    port = port or model.port or free_port(_ports(config))
    etcd, secrets = _reached(config, asked, os.environ)
    command = engine_command(config, name, etcd, port, bind, sys.executable, spare=spare_core(config, ours))
    command = _with_key(command, asked)
    return _run(command.argv, {**command.env, **secrets}, asked)


def _engine_of(file: Path, known: Mapping[str, Engine], name: str) -> Engine:
    """By its id, which is the model's name where the model has one engine only."""
    if name in known:
        return known[name]
    several = [id_ for id_, engine in known.items() if engine.name == name]
    if several:
        raise ConfigError(f"{file}: models.{name} has several engines", remedy=f"name one: {', '.join(several)}")
    raise ConfigError(f"{file}: models.{name}: there is no such model", remedy=f"known: {', '.join(known)}")


def _with_key(command: Command, asked: Asked) -> Command:
    """An engine beside a running node streams weights with that node's engines."""
    if programs.TRANSFER_KEY in os.environ or not asked.run_dir.transfer_key.exists():
        return command
    return msgspec.structs.replace(command, env={**command.env, programs.TRANSFER_KEY: str(asked.run_dir.transfer_key)})


def _reached(config: Config, asked: Asked, environ: Mapping[str, str]) -> tuple[tuple[str, ...], dict[str, str]]:
    """Where etcd is, and what of it the environment has to say. Raises ConfigError where nobody knows."""
    known = named(config, asked, environ)
    etcd, secrets = credentials_apart(known or _of_node(asked))
    return etcd, secrets if known else {**secrets, **development(environ)}


def named(config: Config, asked: Asked, environ: Mapping[str, str]) -> tuple[str, ...]:
    """On the command line, in the environment, or in the configuration, in this order; empty: nowhere."""
    said = asked.etcd or environ.get("VNPU_ETCD_ENDPOINTS") or environ.get("ETCD_ENDPOINTS") or ""
    return tuple(url.strip() for url in said.split(",") if url.strip()) or config.endpoints


def _of_node(asked: Asked) -> tuple[str, ...]:
    """The embedded etcd of the node that runs in `--run-dir`. Raises ConfigError where none does."""
    try:
        return asked.run_dir.read().etcd
    except NotRunning:
        remedy = "start `vnpu up` first, or name one: --etcd http://127.0.0.1:2379"
        raise ConfigError(f"{asked.file}: etcd: is embedded, and no node runs here", remedy=remedy) from None


def _ports(config: Config) -> set[int]:
    return {model.port for model in config.models.values() if model.port}


def _become(program: Program, secrets: Mapping[str, str], asked: Asked) -> int:
    return _run(program.argv, {**program.env, **secrets}, asked)


def _run(argv: tuple[str, ...], env: dict[str, str], asked: Asked) -> int:
    """Shows it and returns, or becomes it and does not."""
    command = Command(argv, env)
    if asked.as_json:
        print(msgspec.json.format(msgspec.json.encode(command)).decode())
    elif asked.show:
        print(command.shell())
    else:
        _exec(command)
    return 0


def _exec(command: Command) -> NoReturn:
    print(f"vnpu: {shlex.join(command.argv)}", file=sys.stderr)
    os.execve(command.argv[0], command.argv, {**os.environ, **command.env})
