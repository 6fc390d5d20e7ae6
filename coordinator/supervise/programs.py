"""Which programs make a node, and with which words each is started. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from coordinator.config import Config
from coordinator.placement import engines
from coordinator.supervise.engine_command import engine_command
from coordinator.supervise.keeper import Kind, Program
from coordinator.supervise.layout import RunDir

TRANSFER_KEY = "VNPU_TRANSFER_KEY_FILE"
CLIENT_KEYS = ("VNPU_API_KEY", "VNPU_ADMIN_KEY")
"""The coordinator alone asks for them: no engine's environment holds them."""
CORE_GIVE_UP = 3
ENGINE_STOP_S = 30.0
ENGINE_GIVE_UP = 5
DAEMON_STOP_S = 15.0
COORDINATOR_STOP_S = 15.0


def daemon(config: Config, etcd: Sequence[str], run_dir: RunDir, python: str) -> Program:
    """The node daemon, which owns every device page."""
    argv = [python, "-m", "native.daemon", "--node", config.node, "--etcd", ",".join(etcd)]
    argv += ["--socket", str(run_dir.socket), "--state-dir", str(run_dir.daemon)]
    for device in config.devices:
        overhead = f":{int(device.overhead)}" if device.overhead else ""
        argv += ["--device", f"{device.name}:{device.driver}:{int(device.capacity)}{overhead}"]
    if config.host_ram is not None:
        argv += ["--host-ram", str(int(config.host_ram))]
    return Program("daemon", Kind.DAEMON, tuple(argv), _log(config), stop_s=DAEMON_STOP_S, give_up=CORE_GIVE_UP)


def coordinator(
    config: Config,
    file: Path,
    etcd: Sequence[str],
    identifier: str,
    python: str,
    *,
    watch: bool = False,
    supervised: bool = False,
) -> Program:
    """The coordinator with gateway and admin API; it reads the configuration `file` itself, where it is to `watch` it
    again whenever it changes. `supervised`: its engines come and go with that file."""
    argv = [python, "-m", "coordinator", "--config", str(file), "--etcd", ",".join(etcd), "--id", identifier]
    argv += ["--supervised"] if supervised else []
    argv += ["--watch-config"] if watch else []
    return Program(
        "coordinator", Kind.COORDINATOR, tuple(argv), _log(config), stop_s=COORDINATOR_STOP_S, give_up=CORE_GIVE_UP
    )


def etcd() -> Program:
    """The embedded etcd; `EmbeddedEtcd` knows its words."""
    return Program("etcd", Kind.ETCD, (), give_up=CORE_GIVE_UP)


def engine(
    config: Config, name: str, etcd: Sequence[str], port: int, bind: str, python: str, *, spare: bool
) -> Program:
    """As `engine_command`."""
    command = engine_command(config, name, etcd, port, bind, python, spare=spare)
    return Program(
        name,
        Kind.ENGINE,
        command.argv,
        command.env,
        url=f"http://127.0.0.1:{port}",
        restart=engines(config)[name].model.restart == "always",
        stop_s=ENGINE_STOP_S,
        give_up=ENGINE_GIVE_UP,
    )


def environment(program: Program, inherited: Mapping[str, str]) -> dict[str, str]:
    """What the program sees: the user's environment, under what we set. Where the user binds engines to cores by
    hand, that holds."""
    kept = {name: inherited[name] for name in program.env if name in inherited and name.startswith("VLLM_CPU_")}
    hidden = () if program.kind is Kind.COORDINATOR else CLIENT_KEYS
    seen = {name: value for name, value in inherited.items() if name not in hidden}
    return {**seen, **program.env, **kept}


def _log(config: Config) -> dict[str, str]:
    return {"VNPU_LOG_LEVEL": config.log.level.upper()}
