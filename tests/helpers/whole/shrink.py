"""From a plan that fails to the shortest found that fails in the same way (Zeller's ddmin, within a number of runs)."""

from __future__ import annotations

import re

import msgspec

from tests.helpers.whole.machine import Violated
from tests.helpers.whole.plan import Plan, history

RUNS = 120


def fails(plan: Plan) -> str:
    """What goes wrong; empty: nothing."""
    try:
        history(plan)
    except Violated as violated:
        return str(violated)
    return ""


def kind(wrong: str) -> str:
    """Failures of one kind differ in names and numbers only."""
    return re.sub(r"[\w/-]*\d[\w/.]*|'[^']*'", "#", wrong.split(";", maxsplit=1)[0])


def minimal(plan: Plan, wrong: str, runs: int = RUNS) -> Plan:
    """`plan` fails with `wrong`."""
    wanted, acts, parts = kind(wrong), plan.acts, 2
    while runs > 0 and len(acts) > 1:
        size = -(-len(acts) // parts)
        for start in range(0, len(acts), size):
            fewer = acts[:start] + acts[start + size :]
            runs -= 1
            if kind(fails(msgspec.structs.replace(plan, acts=fewer))) == wanted:
                acts, parts = fewer, max(2, parts - 1)
                break
            if runs <= 0:
                break
        else:
            if size == 1:
                break
            parts = min(len(acts), parts * 2)
    return msgspec.structs.replace(plan, acts=acts, note=wrong[:300])


def told(plan: Plan) -> str:
    """The history for a reader: acts, then what happened; and the line that `tests/sim/histories` keeps."""
    lines = [f"  {act.at:7.3f} {act.what} whom={act.whom} much={act.much} more={act.more}" for act in plan.acts]
    return "\n".join([f"seed {plan.seed}: {plan.note}", *lines, msgspec.json.encode(plan).decode()])
