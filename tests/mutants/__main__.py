"""`make mutants`: each planted bug is built into a copy of the code and looked for; whoever blames it is then run on a
copy without it. Prints the table; exits with 1 where one is not found, or where its patch fits no more. Names as
arguments choose some."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from native import _native
from tests.helpers.mutants import SIMULATION, Misfit, Mutant, mutants, plant

SEEDS = 10_000
LIMIT_S = 1500.0
_START = (
    "import runpy, sys;"
    "sys.meta_path[:] = [each for each in sys.meta_path if 'ScikitBuild' not in type(each).__name__];"
    "sys.path.insert(0, {folder!r}); sys.argv = {argv!r};"
    "import coordinator; assert coordinator.__file__.startswith({folder!r}), coordinator.__file__;"
    "runpy.run_module({module!r}, run_name='__main__', alter_sys=True)"
)


def look(mutant: Mutant, seeds: int) -> tuple[bool, str]:
    """Whether it was found, and by what: who blames it must find nothing wrong with the code as it is."""
    simulated = mutant.seen_by == SIMULATION
    try:
        blamed, told = _run(mutant, [str(seeds)] if simulated else mutant.seen_by.split())
    except Misfit as misfit:
        return False, f"write the patch anew: {misfit}"
    if not blamed:
        return False, told
    seed = told.removeprefix("seed ").partition(":")[0]
    wrong, how = _run(_control(mutant), ["1", "--first", seed] if simulated else mutant.seen_by.split())
    return (True, told) if not wrong and not how else (False, f"the code without it fails as well: {how or told}")


def _control(mutant: Mutant) -> Mutant:
    """The same without the bug."""
    return msgspec.structs.replace(mutant, hunks=())


def _run(mutant: Mutant, words: Sequence[str]) -> tuple[bool, str]:
    """In a copy of the code with the bug in it: whether the simulation or the test of `words` finds something wrong,
    and the line that says so. What else went wrong is told too; nothing is where nobody noticed. Raises Misfit."""
    with tempfile.TemporaryDirectory(prefix="vnpu-mutant-") as name:
        folder = Path(name).resolve()
        plant(mutant, folder, Path(_native.__file__))
        simulated = mutant.seen_by == SIMULATION
        module = "tests.helpers.whole" if simulated else "pytest"
        argv = [module, *words, "--brief"] if simulated else [module, "-x", "-q", "-p", "no:cacheprovider", *words]
        code = _START.format(folder=str(folder), argv=argv, module=module)
        done = subprocess.run(
            [sys.executable, "-P", "-c", code], cwd=folder, capture_output=True, text=True, timeout=LIMIT_S, check=False
        )
    told = [line for line in done.stdout.splitlines() if line.startswith(("seed ", "FAILED"))]
    if done.returncode == 1 and told:
        return True, told[0]
    return False, (done.stderr or done.stdout)[-300:].replace("\n", " ") if done.returncode else ""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    given = parser.parse_args()
    missed = 0
    for mutant in mutants():
        if given.names and not any(name in mutant.name for name in given.names):
            continue
        began = time.monotonic()
        found, how = look(mutant, given.seeds)
        missed += not found
        mark = "found" if found else "MISSED"
        took = time.monotonic() - began
        sys.stdout.write(
            f"{mark:6} {mutant.name:28} {took:6.1f} s  {mutant.what} | {(how or 'nobody noticed')[:160]}\n"
        )
        sys.stdout.flush()
    sys.stdout.write(f"{missed} missed\n")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
