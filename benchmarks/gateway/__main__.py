"""`python -m benchmarks.gateway`: see the README beside this file."""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec
import uvloop
from rich.console import Console
from rich.progress import Progress

from benchmarks import figures
from benchmarks.figures import Ratio, Result
from benchmarks.gateway import parts
from benchmarks.gateway.asking import Told
from benchmarks.gateway.client import LIMIT_S, Run
from benchmarks.gateway.goals import GOALS
from benchmarks.gateway.parts import Part
from coordinator.demo import memcpy
from coordinator.process import raise_file_limit

DIRECT, OURS, NGINX = "direct", "gateway", "nginx"
MODELS = 1000
CLIENTS = 2
"""Processes that ask for what is held; one alone asks for what is timed."""


class Case(msgspec.Struct, frozen=True):
    """So many streams at once; `herd`: the stub answers in steps, as engines do, all that are due in one together."""

    streams: int
    herd: bool = False

    @property
    def name(self) -> str:
        return f"{self.streams}_herd" if self.herd else str(self.streams)


JUDGED_TTFT = {"": Case(32), "_herd": Case(32, herd=True)}
"""By what is added to the figures' names."""
FULLEST = Case(256)
CASES = (Case(1), *JUDGED_TTFT.values(), FULLEST, Case(256, herd=True))


class Plan(msgspec.Struct, frozen=True):
    """Pairs of runs of `seconds` each; requests that are held; seconds for which `vnpu-watch` is watched. `judged`:
    pairs during which memcpy drifted are dropped."""

    pairs: int
    seconds: float
    held: int
    watched: float
    judged: bool


FULL = Plan(12, 2.0, 10_000, 30.0, judged=True)
QUICK = Plan(2, 0.5, 500, 3.0, judged=False)


class Cpu(msgspec.Struct, frozen=True):
    """Microseconds of CPU for each answer: of what stands between (directly: nothing), the stub, the client."""

    between: float
    stub: float
    client: float


class Level(msgspec.Struct):
    """Runs of one case, by path, those of one pair at the same index."""

    runs: dict[str, list[Run]] = {}
    cpu: dict[str, list[Cpu]] = {}
    dropped: int = 0

    def rps(self, path: str, over: str) -> list[float]:
        return [one.rps / other.rps for one, other in zip(self.runs[path], self.runs[over], strict=True)]

    def added_ttft(self, path: str) -> list[float]:
        """(p99 by `path` − p99 directly) ÷ the median directly."""
        pairs = zip(self.runs[path], self.runs[DIRECT], strict=True)
        return [(p99(one.ttft) - p99(direct.ttft)) / statistics.median(direct.ttft) for one, direct in pairs]


def p99(values: list[float]) -> float:
    return sorted(values)[int(0.99 * len(values))]


class Kept(msgspec.Struct, frozen=True):
    """Bytes of resident memory for each held request, and how many were answered with which status."""

    bytes_each: float
    statuses: dict[int, int]


async def compare(paths: dict[str, Part], client: Part, plan: Plan, progress: Progress) -> dict[Case, Level]:
    levels = {case: Level({path: [] for path in paths}, {path: [] for path in paths}) for case in CASES}
    task = progress.add_task("streams", total=plan.pairs * len(CASES))
    for _ in range(plan.pairs):
        for case, level in levels.items():
            before = memcpy.seconds_per_byte(64 << 20, 2)
            runs = {path: await _run(paths, path, client, case, plan.seconds) for path in paths}
            if figures.steady(before, memcpy.seconds_per_byte(64 << 20, 2)) or not plan.judged:
                for path, (run, cpu) in runs.items():
                    level.runs[path].append(run)
                    level.cpu[path].append(cpu)
            else:
                level.dropped += 1
            progress.advance(task)
    return levels


async def _run(paths: dict[str, Part], path: str, client: Part, case: Case, seconds: float) -> tuple[Run, Cpu]:
    asked, stub = paths[path], paths[DIRECT]
    before = asked.cpu, stub.cpu
    mode = " herd" if case.herd else ""
    line = await client.ask(f"run {asked.port} {case.streams} {seconds}{mode}", LIMIT_S + seconds)
    told = msgspec.json.decode(line, type=Told)
    each = 1e6 / max(1, told.run.answers)
    between = 0.0 if asked is stub else asked.cpu - before[0]
    return told.run, Cpu(between * each, (stub.cpu - before[1]) * each, told.cpu * each)


async def hold(gateway: Part, engine: int, count: int, clients: list[Part], progress: Progress) -> Kept:
    """Requests for a model that has no engine, which then has one. The process has served before, so that what it
    needs for its first requests is not counted."""
    task = progress.add_task(f"{count} held requests", total=3)
    await gateway.say("hold")
    before = gateway.rss
    shares = [count // len(clients) + (n < count % len(clients)) for n in range(len(clients))]
    for client, share in zip(clients, shares, strict=True):
        await client.ask(f"hold {gateway.port} {share}", LIMIT_S)
    await _all_there(gateway, count)
    progress.advance(task)
    grown = gateway.rss - before
    await gateway.say(f"route http://127.0.0.1:{engine}")
    progress.advance(task)
    statuses: list[int] = []
    for client in clients:
        statuses += msgspec.json.decode(await client.ask("answers", LIMIT_S), type=list[int])
    progress.advance(task)
    return Kept(grown / count, {status: statuses.count(status) for status in sorted({*statuses})})


async def _all_there(gateway: Part, count: int) -> None:
    """The gateway's own metric says how many wait."""
    await parts.until_metric(gateway.port, 'vnpu_queue_depth{model="m"}', count)


async def run(plan: Plan, progress: Progress) -> Result:
    limit = raise_file_limit()
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vnpu-gateway-")))
        engine = await stack.enter_async_context(parts.python("stub", folder / "stub.log"))
        gateway = await stack.enter_async_context(parts.python("served", folder / "gateway.log"))
        proxy = await stack.enter_async_context(parts.nginx(engine.port, folder))
        clients = [
            await stack.enter_async_context(parts.python("asking", folder / f"client-{n}.log")) for n in range(CLIENTS)
        ]
        await gateway.say(f"route http://127.0.0.1:{engine.port}")
        paths = {DIRECT: engine, OURS: gateway, **({} if proxy is None else {NGINX: proxy})}
        levels = await compare(paths, clients[0], plan, progress)
        held = await hold(gateway, engine.port, plan.held, clients, progress)
    task = progress.add_task("vnpu-watch", total=1)
    share = await parts.watch_share(MODELS, plan.watched)
    progress.advance(task)
    return result(levels, held, share, limit)


def result(levels: dict[Case, Level], held: Kept, share: float, limit: int) -> Result:
    ratios: dict[str, Ratio] = {}
    proxied = NGINX in levels[FULLEST].runs
    for mark, case in JUDGED_TTFT.items():
        ratios[f"added_ttft_p99{mark}"] = figures.ratio(levels[case].added_ttft(OURS))
        if proxied:
            ratios[f"added_ttft_p99_nginx{mark}"] = figures.ratio(levels[case].added_ttft(NGINX))
    values = {"held_kb": held.bytes_each / 1000, "watch_core_share": share}
    notes = [f"open files: {limit}", *(f"held, answered {status}: {count}" for status, count in held.statuses.items())]
    for case, level in levels.items():
        ratios |= {
            f"rps_over_{path}_{case.name}": figures.ratio(level.rps(OURS, path)) for path in level.runs if path != OURS
        }
        for path, runs in level.runs.items():
            values |= made_of(path, case, runs, level.cpu[path])
        failed = {path: sum(one.failed for one in runs) for path, runs in level.runs.items()}
        notes.append(f"{case.name} streams: {level.dropped} pairs dropped because memcpy drifted; failed {failed}")
    values["stub_over_gateway"] = values["cpu_us_between_gateway_256"] / values["cpu_us_stub_direct_256"]
    if not proxied:
        notes.append("nginx is not installed here: not compared")
    return Result(
        benchmark="gateway",
        version=figures.version(),
        machine=figures.machine(memcpy.seconds_per_byte()),
        ratios=ratios,
        values=values,
        notes=notes,
    )


def made_of(path: str, case: Case, runs: list[Run], cpu: list[Cpu]) -> dict[str, float]:
    """What the ratios are made of, median of the runs."""
    spent = {
        f"cpu_us_{name}_{path}_{case.name}": statistics.median(getattr(one, name) for one in cpu)
        for name in Cpu.__struct_fields__
    }
    return {
        f"rps_{path}_{case.name}": statistics.median(one.rps for one in runs),
        **spent,
        f"ttft_p99_ms_{path}_{case.name}": 1e3 * statistics.median(p99(one.ttft) for one in runs),
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gateway", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object on standard output")
    parser.add_argument("--quick", action="store_true", help="fewer pairs: it must run, its figures are not judged")
    arguments = parser.parse_args()
    console = Console(stderr=arguments.json)
    with Progress(console=console) as progress:
        measured = uvloop.run(run(QUICK if arguments.quick else FULL, progress))
    figures.show(console, measured, GOALS)
    if arguments.json:
        sys.stdout.write(msgspec.json.encode(measured).decode() + "\n")


if __name__ == "__main__":
    main()
