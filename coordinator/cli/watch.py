"""`vnpu-watch`: what is on the devices and who waits, live from one etcd watch."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
import termios
import time
import tty
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec
from rich.console import Console
from rich.live import Live
from rich.markup import escape

from coordinator.cli.render import render
from coordinator.cli.view import View, Wake, build, remember
from coordinator.core.model import Decision, Spec
from coordinator.core.why import why
from coordinator.errors import ConfigError, VnpuError
from coordinator.picture import Mirror, Picture
from coordinator.store import connect
from coordinator.store.access import credentials_apart
from coordinator.supervise.child import first
from coordinator.supervise.layout import RunDir

ANSWER_S = 10.0
CLOCK_S = 1.0
PAPER = 160
"""Columns where there is no terminal."""
FURNITURE = 12
"""Lines of the screen that are not models."""

_ABOUT = """\
Shows devices (bytes by kind, who holds them, what is going on) and models (phase, queue, last wake), live. Finds the
node by DIR/run.json of a running `vnpu up`, by $VNPU_ETCD_ENDPOINTS, or by --etcd. q or Ctrl-C ends it.
"""
_EXAMPLES = """\
examples:
  vnpu-watch                                the node that runs here
  vnpu-watch --etcd http://etcd:2379        any node, from anywhere
  vnpu-watch --once                         one look; for scripts: --once --json | jq .models
  vnpu-watch --json                         one JSON object a line, at each change
  vnpu-watch why qwen-a                     the newest decisions about a model: cause, policy, every candidate
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Exit codes: 0 done, 1 etcd does not answer, 2 wrong use, 130 Ctrl-C."""
    args = _parser().parse_args(argv)
    logging.basicConfig(level=logging.ERROR, format="%(levelname)s %(name)s: %(message)s")
    try:
        asked(args.words)
        return asyncio.run(_watch(args, endpoints(args.etcd, RunDir(Path(args.run_dir)), os.environ)))
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


def asked(words: Sequence[str]) -> str:
    """The model of `why MODEL`; empty: nothing was asked. Raises ConfigError for other words."""
    if not words:
        return ""
    if len(words) != 2 or words[0] != "why":
        raise ConfigError(f"{' '.join(words)!r} is nothing to ask", remedy="write vnpu-watch why MODEL")
    return words[1]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "vnpu-watch", description=_ABOUT, epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("words", nargs="*", metavar="why MODEL", help="say why MODEL came, left or stayed, and end")
    parser.add_argument("--once", action="store_true", help="show it once and end")
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.add_argument("--etcd", metavar="URL[,URL]", help="etcd's endpoints")
    parser.add_argument("--run-dir", metavar="DIR", default=".vnpu", help="the running node's folder (default: .vnpu)")
    return parser


async def _watch(args: argparse.Namespace, urls: Sequence[str]) -> int:
    if (ours := asyncio.current_task()) is not None:
        for number in (signal.SIGTERM, signal.SIGHUP):
            asyncio.get_running_loop().add_signal_handler(number, ours.cancel)  # the terminal is to be given back
    store = connect(urls)
    mirror = Mirror(store)
    watcher = Watcher(mirror)
    try:
        await first((mirror.run(), _show(watcher, args, urls)))
    finally:
        await store.close()
    return 0


async def _show(watcher: Watcher, args: argparse.Namespace, urls: Sequence[str]) -> None:
    await watcher.first_answer(urls)
    console = Console() if sys.stdout.isatty() or "COLUMNS" in os.environ else Console(width=PAPER)
    if model := asked(args.words):
        explain(watcher.picture, model, console, as_json=args.json)
    elif args.once:
        _print(watcher.view(), console, as_json=args.json)
    elif args.json or not console.is_terminal:
        while True:
            _print(watcher.view(), console, as_json=args.json)
            await watcher.news()
    else:
        await _live(watcher, console)


def explain(picture: Picture, model: str, console: Console, *, as_json: bool) -> None:
    """Prints why. Raises VnpuError where nothing is known of `model`."""
    engines = {id_ for id_, spec in picture.of(Spec).items() if spec.model == model}
    told = why(model, engines, picture.of(Decision).values())
    if not told and not engines:
        models = sorted({spec.model for spec in picture.of(Spec).values()})
        raise VnpuError(f"no engine of {model} is known", remedy=f"known are: {', '.join(models) or 'none'}")
    if as_json:
        print(msgspec.json.encode(told).decode(), flush=True)
        return
    if not told:
        console.print(f"Nothing has been decided about {escape(model)} yet.")
    for each in told:
        at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(each.at))
        console.print(f"[bold]{escape(each.what)}[/]  [dim]decision {each.n}, {at}[/]")
        console.print(f"  because {escape(each.because)}", highlight=False)
        for line in each.looked_at:
            console.print(f"  looked at {escape(line)}", highlight=False)
        if each.shadow:
            console.print(f"  shadow policy {escape(each.shadow)}", highlight=False)


def _print(view: View, console: Console, *, as_json: bool) -> None:
    if as_json:
        print(msgspec.json.encode(view).decode(), flush=True)
    else:
        console.print(render(view, console.width))


async def _live(watcher: Watcher, console: Console) -> None:
    with _keys() as quitting, Live(console=console, screen=True, auto_refresh=False) as live:
        while not quitting.is_set():
            live.update(render(watcher.view(), console.width, console.height - FURNITURE), refresh=True)
            await first((watcher.news(), quitting.wait()))


@contextmanager
def _keys() -> Iterator[asyncio.Event]:
    """Set when `q` or Ctrl-C is pressed; the terminal hands over single keys meanwhile."""
    quitting, loop = asyncio.Event(), asyncio.get_running_loop()
    if not sys.stdin.isatty():
        yield quitting
        return
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)

    def pressed() -> None:
        if b"q" in os.read(descriptor, 64).lower():
            quitting.set()

    tty.setcbreak(descriptor)
    loop.add_reader(descriptor, pressed)
    try:
        yield quitting
    finally:
        loop.remove_reader(descriptor)
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


class Watcher:
    """A mirror with a memory: the last wake of each engine, and what was shown last."""

    def __init__(self, mirror: Mirror) -> None:
        self._mirror = mirror
        self._wakes: dict[str, Wake] = {}
        self._shown: View | None = None

    async def first_answer(self, urls: Sequence[str]) -> None:
        """Raises VnpuError where etcd does not answer within 10 s."""
        try:
            async with asyncio.timeout(ANSWER_S):
                await self._mirror.until(lambda picture: True)
        except TimeoutError:
            remedy = "is the node running? name another: --etcd URL"
            shown = ", ".join(credentials_apart(urls)[0])
            raise VnpuError(f"etcd at {shown} does not answer", remedy=remedy) from None

    @property
    def picture(self) -> Picture:
        return self._mirror.picture

    def view(self) -> View:
        heard = self._mirror.heard
        self._wakes = remember(self._wakes, self._mirror.picture)
        self._shown = build(self._mirror.picture, self._wakes, None if heard is None else time.monotonic() - heard)
        return self._shown

    async def news(self) -> None:
        """Returns when there is something else to show; a heartbeat is nothing else, silence is."""
        shown = self._shown
        while self.view() == shown:
            with suppress(TimeoutError):
                async with asyncio.timeout(CLOCK_S):
                    await self._mirror.changed()


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    sys.exit(main())
