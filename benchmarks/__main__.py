"""`python -m benchmarks [--quick] [NAME …]`: runs benchmarks in turn; each one's result is kept, and `RESULTS.md` and
the table of README are made anew."""

from __future__ import annotations

import argparse
import datetime
import subprocess
import sys

import msgspec
from rich.console import Console

from benchmarks import page
from benchmarks.figures import Result


def names() -> list[str]:
    return sorted(found.parent.name for found in page.FOLDER.glob("*/__main__.py"))


def run(name: str, *, quick: bool) -> page.Run:
    """One benchmark as a process of its own; raises `CalledProcessError` when it fails."""
    command = [sys.executable, "-m", f"benchmarks.{name}", "--json", *(["--quick"] if quick else [])]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    today = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d")
    return page.Run(today, msgspec.json.decode(done.stdout, type=Result))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", help=f"which ones (default: all of {', '.join(names())})")
    parser.add_argument("--quick", action="store_true", help="fewer pairs; nothing is kept")
    arguments = parser.parse_args()
    console = Console()
    runs = []
    for name in arguments.names or names():
        console.rule(name)
        runs.append(run(name, quick=arguments.quick))
        if not arguments.quick:
            page.keep(runs[-1])
    console.print(page.render(runs), markup=False)
    if not arguments.quick:
        page.write()


if __name__ == "__main__":
    main()
