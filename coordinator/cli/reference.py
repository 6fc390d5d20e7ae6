"""docs/cli.md, made from the command lines themselves: `python -m coordinator.cli.reference > docs/cli.md`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from functools import partial

from coordinator.cli import parser
from coordinator.cli.watch import command_line

WIDTH = 100
_HEAD = """\
# Command line

What `--help` says, for all of it; made by `python -m coordinator.cli.reference`. A test holds it to the commands and
their options. How they are used day by day is in [operations.md](operations.md#every-day).
"""


def page() -> str:
    """The whole of it, as Markdown."""
    return "\n".join([_HEAD, *(_part(one) for one in (*_commands(), command_line()))])


def _commands() -> Iterator[argparse.ArgumentParser]:
    whole = parser.build()
    yield whole
    [commands] = [action for action in whole._actions if isinstance(action, argparse._SubParsersAction)]
    yield from commands.choices.values()


def _part(one: argparse.ArgumentParser) -> str:
    one.formatter_class = partial(argparse.RawDescriptionHelpFormatter, width=WIDTH)
    return f"## {one.prog}\n\n```\n{one.format_help().rstrip()}\n```\n"


if __name__ == "__main__":
    sys.stdout.write(page())
