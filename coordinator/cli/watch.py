"""`vnpu-watch`: what is on the devices and who waits, live from one etcd watch; and what operators do about it."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
from rich.console import Console

from coordinator.cli.completion import SHELLS, script
from coordinator.cli.explanation import explain, sentences
from coordinator.cli.happenings import Happening, past
from coordinator.cli.live import live
from coordinator.cli.operate import ACTS, Operator
from coordinator.cli.render import render, render_events, render_models
from coordinator.cli.view import View
from coordinator.cli.watcher import Watcher
from coordinator.errors import ConfigError, VnpuError
from coordinator.picture import Mirror, Picture
from coordinator.store import connect
from coordinator.supervise.child import first
from coordinator.supervise.layout import RunDir

PAPER = 160
"""Columns where there is no terminal."""
RECENT = 20
"""Decisions that `events --once` shows."""
LOOKS = ("top", "ps", "events", "models")
COMMANDS = (*LOOKS, "why", *ACTS, "completion")
OPTIONS = ("--once", "--json", "--at-revision", "--etcd", "--admin", "--run-dir", "--help")

_ABOUT = """\
Shows devices (bytes by kind, who holds them, what is going on) and models (phase, queue, last wake), live, and does
what operators do. Finds the node by DIR/run.json of a running `vnpu up`, by $VNPU_ETCD_ENDPOINTS, or by --etcd. What is
shown comes from etcd; pin, unpin, sleep, wake, drain and resume go to the admin API of whoever leads, with
$VNPU_ADMIN_KEY. Colours are off without a terminal or with $NO_COLOR.
"""
_EXAMPLES = """\
commands:
  top                    the live screen (the default); its last line says which keys do what
  ps                     models, once
  events                 what happens, a line each
  why MODEL              the newest decisions about a model: cause, policy, every candidate;
                         --at-revision R: as of etcd's revision R (a fence, a log line, or `why` names it)
  pin, unpin MODEL...    never a victim; may be one again
  sleep, wake MODEL...   out of device memory; back
  drain, resume MODEL... takes nothing new, ends what it has, leaves; ends that
  completion SHELL       for bash, zsh or fish: eval "$(vnpu-watch completion bash)"

examples:
  vnpu-watch                                the node that runs here
  vnpu-watch --etcd http://etcd:2379        any node, from anywhere
  vnpu-watch --once                         one look; for scripts: --once --json | jq .models
  vnpu-watch --json                         one JSON object a line, at each change
  vnpu-watch events --json                  one event a line, for ever
"""


class Asked(msgspec.Struct, frozen=True):
    """What the command line says. `names`: models, or a shell. `at`: a revision of etcd, for `why`."""

    command: str
    names: tuple[str, ...]
    once: bool
    as_json: bool
    at: int | None = None


def main(argv: Sequence[str] | None = None) -> int:
    """Exit codes: 0 done, 1 etcd or the admin API does not answer or refuses, 2 wrong use, 130 Ctrl-C."""
    args = command_line().parse_args(argv)
    logging.basicConfig(level=logging.ERROR, format="%(levelname)s %(name)s: %(message)s")
    try:
        asked = understood(args.words, once=args.once, as_json=args.json, at=args.at_revision)
        if asked.command == "completion":
            print(script(asked.names[0], COMMANDS, ("why", *ACTS), OPTIONS), end="")
            return 0
        urls = endpoints(args.etcd, RunDir(Path(args.run_dir)), os.environ)
        key, hosts = os.environ.get("VNPU_ADMIN_KEY", ""), os.environ.get("VNPU_ENGINE_HOSTS", "")
        return asyncio.run(_watch(asked, Operator(args.admin or "", key, hosts), urls))
    except ConfigError as error:
        print(f"vnpu-watch: {error}", file=sys.stderr)
        return 2
    except VnpuError as error:
        print(f"vnpu-watch: {error}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, asyncio.CancelledError):
        return 130


def endpoints(named: str | None, run_dir: RunDir, environ: Mapping[str, str]) -> tuple[str, ...]:
    """Of the command line, the environment, or the running node. Raises NotRunning where none knows."""
    given = named or environ.get("VNPU_ETCD_ENDPOINTS") or environ.get("ETCD_ENDPOINTS") or ""
    return tuple(url.strip() for url in given.split(",") if url.strip()) or run_dir.read().etcd


def understood(words: Sequence[str], *, once: bool, as_json: bool, at: int | None = None) -> Asked:
    """Raises ConfigError for words that mean nothing."""
    command, names = (words[0], tuple(words[1:])) if words else ("top", ())
    if command not in COMMANDS:
        raise ConfigError(f"{command!r} is no command", remedy=f"there are {', '.join(COMMANDS)}")
    if command in LOOKS and names:
        raise ConfigError(f"{command} takes no names", remedy=f"vnpu-watch {command}")
    if command == "why" and len(names) != 1:
        raise ConfigError("why takes one model", remedy="vnpu-watch why MODEL")
    if at is not None and (command != "why" or at < 1):
        raise ConfigError("--at-revision goes with why, from 1", remedy="vnpu-watch why MODEL --at-revision R")
    if command in ACTS and not names:
        raise ConfigError(f"{command} takes models", remedy=f"vnpu-watch {command} MODEL")
    if command == "completion" and (len(names) != 1 or names[0] not in SHELLS):
        raise ConfigError("completion takes a shell", remedy=f"one of {', '.join(SHELLS)}")
    return Asked(command, names, once, as_json, at)


def command_line() -> argparse.ArgumentParser:
    """The words of it."""
    parser = argparse.ArgumentParser(
        "vnpu-watch", description=_ABOUT, epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("words", nargs="*", metavar="COMMAND", help="one of those below; the default is top")
    parser.add_argument("--once", action="store_true", help="show it once and end")
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.add_argument("--at-revision", type=int, metavar="R", help="with why: as of this revision of etcd")
    parser.add_argument("--etcd", metavar="URL[,URL]", help="etcd's endpoints")
    parser.add_argument("--admin", metavar="URL", help="the admin API (default: the leader's, as etcd has it)")
    parser.add_argument("--run-dir", metavar="DIR", default=".vnpu", help="the running node's folder (default: .vnpu)")
    return parser


async def _watch(asked: Asked, operator: Operator, urls: Sequence[str]) -> int:
    if (ours := asyncio.current_task()) is not None:
        for number in (signal.SIGTERM, signal.SIGHUP):
            asyncio.get_running_loop().add_signal_handler(number, ours.cancel)  # the terminal is to be given back
    store = connect(urls)
    mirror = Mirror(store)
    watcher = Watcher(mirror)
    try:
        await first((mirror.run(), _answer(asked, watcher, operator, urls)))
    finally:
        await store.close()
    return 0


async def _answer(asked: Asked, watcher: Watcher, operator: Operator, urls: Sequence[str]) -> None:
    await watcher.first_answer(urls)
    console = Console() if sys.stdout.isatty() or "COLUMNS" in os.environ else Console(width=PAPER)
    if asked.command in ACTS:
        await _act(asked, watcher, operator)
    elif asked.command == "why":
        _explain(asked, watcher.picture, console)
    elif asked.command == "events":
        await _events(asked, watcher, console)
    elif asked.command == "models":
        print("\n".join(sorted({one.model for one in watcher.view().models})))
    else:
        await _show(asked, watcher, operator, console)


async def _show(asked: Asked, watcher: Watcher, operator: Operator, console: Console) -> None:
    if asked.once or asked.command == "ps":
        _print(watcher.view(), console, asked)
    elif asked.as_json or not console.is_terminal:
        while True:
            _print(watcher.view(), console, asked)
            await watcher.news()
    else:
        await live(watcher, operator, console)


async def _act(asked: Asked, watcher: Watcher, operator: Operator) -> None:
    for name in asked.names:
        told = await operator.act(asked.command, name, watcher.view().admin)
        print(msgspec.json.encode(told).decode() if asked.as_json else f"{asked.command} {name}: accepted", flush=True)


async def _events(asked: Asked, watcher: Watcher, console: Console) -> None:
    """First the newest decisions, then what happens."""
    decided = [past(decision) for decision in watcher.latest(RECENT)]
    watcher.view()
    _tell(decided, console, as_json=asked.as_json)
    seen = 0
    while not asked.once:
        await watcher.news()
        new = watcher.happened - seen
        seen = watcher.happened
        if new:
            _tell(list(watcher.happenings)[-new:], console, as_json=asked.as_json)


def _tell(happenings: Sequence[Happening], console: Console, *, as_json: bool) -> None:
    if as_json:
        for each in happenings:
            print(msgspec.json.encode(each).decode(), flush=True)
    elif happenings:
        console.print(render_events(happenings, len(happenings)))


def _explain(asked: Asked, picture: Picture, console: Console) -> None:
    told = explain(picture, asked.names[0], asked.at)
    if asked.as_json:
        print(msgspec.json.encode(told).decode(), flush=True)
    else:
        console.print(sentences(told, asked.names[0], asked.at))


def _print(view: View, console: Console, asked: Asked) -> None:
    short = asked.command == "ps"
    if asked.as_json:
        print(msgspec.json.encode(view.models if short else view).decode(), flush=True)
    else:
        console.print(render_models(view.models) if short else render(view, console.width))


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    sys.exit(main())
