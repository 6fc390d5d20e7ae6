"""`vnpu`: from words to a command, and from what it raises to an exit code.

Commands are imported when they are used: `vnpu --help` loads neither etcd3 nor torch.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from coordinator.cli import parser
from coordinator.errors import ConfigError, VnpuError
from coordinator.log_level import log_level

DONE, FAILED, MISUSED, INTERRUPTED = 0, 1, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    whole = parser.build()
    if not (sys.argv[1:] if argv is None else argv):
        whole.print_help(sys.stderr)
        return MISUSED
    args = whole.parse_args(argv)
    try:
        level = log_level(os.environ, "warning")
        logging.basicConfig(level=level, format="%(levelname)s %(name)s: %(message)s")
        return COMMANDS[args.command](args)
    except ConfigError as error:
        return _complain(error, MISUSED)
    except VnpuError as error:
        return _complain(error, FAILED)
    except BrokenPipeError:  # whoever reads our output has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes once more at its end
        return FAILED
    except OSError as error:  # of files and folders that the user named: a full disk, no permission
        logging.debug("where it came from:", exc_info=error)
        return _complain(VnpuError(f"{error.filename}: {error.strerror}" if error.filename else str(error)), FAILED)
    except KeyboardInterrupt:
        return INTERRUPTED


def _complain(error: VnpuError, code: int) -> int:
    print(f"vnpu: {error}", file=sys.stderr)
    return code


def _config(args: argparse.Namespace) -> Path:
    return Path(args.config or os.environ.get("VNPU_CONFIG") or "vnpu.yaml")


def _up(args: argparse.Namespace) -> int:
    from rich.console import Console

    from coordinator.cli.fetch import bring

    bring(_config(args), os.environ, Console())
    if args.detach:
        from coordinator.cli.detached import up_detached, words_of
        from coordinator.supervise.layout import RunDir

        words = words_of(_config(args), Path(args.run_dir), args.without, watch=args.watch_config)
        return up_detached(words, RunDir(Path(args.run_dir)), Console(), _limit(args))
    from coordinator.cli.up import up

    return up(_config(args), Path(args.run_dir), args.without, Console(), watch=args.watch_config)


def _down(args: argparse.Namespace) -> int:
    from rich.console import Console

    from coordinator.cli.down import down
    from coordinator.supervise.layout import RunDir

    return down(RunDir(Path(args.run_dir)), Console(), _limit(args), now=args.now)


def _status(args: argparse.Namespace) -> int:
    from rich.console import Console

    from coordinator.cli.status import status
    from coordinator.supervise.layout import RunDir

    return status(RunDir(Path(args.run_dir)), Console(), as_json=args.json)


def _logs(args: argparse.Namespace) -> int:
    from coordinator.cli.logs import logs, names
    from coordinator.supervise.layout import RunDir

    run_dir = RunDir(Path(args.run_dir))
    if args.list:
        print("\n".join(names(run_dir)))
        return DONE
    return logs(run_dir, args.name, lines=args.lines, follow=args.follow, before=args.previous)


def _config_check(args: argparse.Namespace) -> int:
    from coordinator.cli.check import check

    return check(Path(args.file) if args.file else _config(args), os.environ, as_json=args.json)


def _fetch(args: argparse.Namespace) -> int:
    from rich.console import Console

    from coordinator.cli.fetch import fetch

    return fetch(_config(args), os.environ, Console())


def _completion(args: argparse.Namespace) -> int:
    from coordinator.cli.words import completion

    print(completion(args.shell), end="")
    return DONE


def _limit(args: argparse.Namespace) -> float:
    from coordinator.sizes import parse_duration

    try:
        return parse_duration(args.timeout)
    except ValueError as error:
        raise ConfigError(f"--timeout: {error}", remedy="write e.g. 90s or 15m") from None


def _daemon(args: argparse.Namespace) -> int:
    from coordinator.cli import alone

    return alone.daemon(alone.Asked.of(args, _config(args)))


def _coordinator(args: argparse.Namespace) -> int:
    from coordinator.cli import alone

    return alone.coordinator(alone.Asked.of(args, _config(args)), args.id, watch=args.watch_config)


def _engine(args: argparse.Namespace) -> int:
    from coordinator.cli import alone

    return alone.engine(alone.Asked.of(args, _config(args)), args.model, args.port, args.cores)


def _key(args: argparse.Namespace) -> int:
    from coordinator.cli.key import key

    return key(given=args.hash, as_json=args.json)


def _make_model(args: argparse.Namespace) -> int:
    from coordinator.cli.make_model import Recipe, make_model

    return make_model(Path(args.out), Recipe(args.arch, args.size, args.seed), as_json=args.json)


def _demo(args: argparse.Namespace) -> int:
    from coordinator.cli.demo import demo

    return demo(Path(args.dir), as_json=args.json)


def _doctor(args: argparse.Namespace) -> int:
    from coordinator.cli.doctor import doctor

    return doctor(engine=args.engine, as_json=args.json)


def _simulate(args: argparse.Namespace) -> int:
    from coordinator.cli.simulate import Asked, policies, simulate

    return simulate(
        Asked(
            trace=args.trace,
            policies=policies(args.policy),
            fleet=Path(args.fleet) if args.fleet else None,
            requests=args.requests,
            models=args.models,
            as_json=args.json,
            plot=Path(args.plot) if args.plot else None,
            write=Path(args.write_trace) if args.write_trace else None,
        )
    )


COMMANDS: Mapping[str, Callable[[argparse.Namespace], int]] = {
    "up": _up,
    "down": _down,
    "status": _status,
    "logs": _logs,
    "config": _config_check,
    "fetch": _fetch,
    "completion": _completion,
    "daemon": _daemon,
    "coordinator": _coordinator,
    "engine": _engine,
    "key": _key,
    "make-model": _make_model,
    "demo": _demo,
    "doctor": _doctor,
    "simulate": _simulate,
}

if __name__ == "__main__":
    sys.exit(main())
