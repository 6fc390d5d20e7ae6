"""The live screen of `vnpu-watch`: draws, listens to keys, and hands wishes to the admin API."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec
from rich.console import Console
from rich.live import Live

from coordinator.cli.frame import frame
from coordinator.cli.happenings import past
from coordinator.cli.operate import Operator
from coordinator.cli.screen import QUIT, Screen, Wish, keys, pressed
from coordinator.cli.view import View
from coordinator.cli.watcher import Watcher
from coordinator.errors import VnpuError
from coordinator.supervise.child import first

RECENT = 50
"""Decisions from before that it begins with."""
ASKED = ("wake", "sleep")
"""What is not done yet when the API has answered."""


async def live(watcher: Watcher, operator: Operator, console: Console) -> None:
    """Until q or Ctrl-C."""
    desk = _Desk(operator)
    watcher.view()  # from here on it takes note of what happens
    watcher.happenings.extend(past(decision) for decision in watcher.latest(RECENT))
    try:
        with _keyboard(desk), Live(console=console, screen=True, auto_refresh=False) as display:
            while not desk.over:
                view = watcher.view()
                display.update(frame(view, watcher.picture, watcher.happenings, desk.screen, console), refresh=True)
                await first((watcher.news(), desk.poked.wait()))
                desk.attend(view)
    finally:
        desk.close()


class _Desk:
    """Keys on their way in, wishes on their way out."""

    def __init__(self, operator: Operator) -> None:
        self.screen = Screen()
        self.poked = asyncio.Event()
        self.over = False
        self._operator = operator
        self._typed: list[str] = []
        self._doing: set[asyncio.Task[None]] = set()

    def type(self, found: list[str]) -> None:
        self._typed += found
        self.poked.set()

    def attend(self, view: View) -> None:
        """Whatever was typed while the last screen stood."""
        self.poked.clear()
        typed, self._typed = self._typed, []
        for key in typed:
            self.screen, wish = pressed(self.screen, key, view.models)
            if wish is not None:
                self._grant(wish, view)

    def close(self) -> None:
        for task in self._doing:
            task.cancel()

    def _grant(self, wish: Wish, view: View) -> None:
        if wish.what == QUIT:
            self.over = True
            return
        task = asyncio.create_task(self._do(wish, view.admin))
        self._doing.add(task)
        task.add_done_callback(self._doing.discard)

    async def _do(self, wish: Wish, admin: str) -> None:
        try:
            await self._operator.act(wish.what, wish.model, admin)
            said = f"{wish.what} {wish.model}: {'asked' if wish.what in ASKED else 'done'}"
        except VnpuError as error:
            said = str(error)
        self.screen = msgspec.structs.replace(self.screen, said=said)
        self.poked.set()


@contextmanager
def _keyboard(desk: _Desk) -> Iterator[None]:
    """The terminal hands over single keys meanwhile, and says when its size changes."""
    if not sys.stdin.isatty():
        yield
        return
    loop, descriptor = asyncio.get_running_loop(), sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    tty.setcbreak(descriptor)
    loop.add_reader(descriptor, lambda: desk.type(keys(os.read(descriptor, 64))))
    loop.add_signal_handler(signal.SIGWINCH, desk.poked.set)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGWINCH)
        loop.remove_reader(descriptor)
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
