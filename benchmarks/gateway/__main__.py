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
from benchmarks.figures import Result
from benchmarks.gateway import parts
from benchmarks.gateway.client import Held, Run, measure
from benchmarks.gateway.goals import GOALS
from benchmarks.gateway.parts import Part
from coordinator.demo import memcpy

STREAMS = (1, 32, 256)
JUDGED_TTFT = 32
DIRECT, OURS, NGINX = "direct", "gateway", "nginx"
MODELS = 1000


class Plan(msgspec.Struct, frozen=True):
    """Pairs of runs of `seconds` each; requests that are held; seconds for which `vnpu-watch` is watched. `judged`:
    pairs during which memcpy drifted are dropped."""

    pairs: int
    seconds: float
    held: int
    watched: float
    judged: bool


FULL = Plan(20, 2.0, 10_000, 30.0, judged=True)
QUICK = Plan(2, 0.5, 500, 3.0, judged=False)


class Level(msgspec.Struct):
    """Runs at one number of streams, by path, those of one pair at the same index."""

    runs: dict[str, list[Run]] = {}
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


async def compare(ports: dict[str, int], plan: Plan, progress: Progress) -> dict[int, Level]:
    levels = {streams: Level({path: [] for path in ports}) for streams in STREAMS}
    task = progress.add_task("streams", total=plan.pairs * len(STREAMS))
    for _ in range(plan.pairs):
        for streams, level in levels.items():
            before = memcpy.seconds_per_byte(64 << 20, 2)
            runs = {path: await measure(port, streams, plan.seconds) for path, port in ports.items()}
            if figures.steady(before, memcpy.seconds_per_byte(64 << 20, 2)) or not plan.judged:
                for path, run in runs.items():
                    level.runs[path].append(run)
            else:
                level.dropped += 1
            progress.advance(task)
    return levels


async def hold(gateway: Part, engine: int, count: int, progress: Progress) -> Kept:
    """Requests for a model that has no engine, which then has one. The process has served before, so that what it
    needs for its first requests is not counted."""
    task = progress.add_task(f"{count} held requests", total=3)
    await gateway.say("hold")
    before = gateway.rss
    held = Held(gateway.port, count)
    await held.ask()
    await _all_there(gateway, count)
    progress.advance(task)
    grown = gateway.rss - before
    await gateway.say(f"route http://127.0.0.1:{engine}")
    progress.advance(task)
    await held.answers()
    progress.advance(task)
    return Kept(grown / count, {status: held.statuses.count(status) for status in sorted({*held.statuses})})


async def _all_there(gateway: Part, count: int) -> None:
    """The gateway's own metric says how many wait."""
    await parts.until_metric(gateway.port, 'vnpu_queue_depth{model="m"}', count)


async def run(plan: Plan, progress: Progress) -> Result:
    limit = parts.more_files()
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vnpu-gateway-")))
        engine = await stack.enter_async_context(parts.python("stub", folder / "stub.log"))
        gateway = await stack.enter_async_context(parts.python("served", folder / "gateway.log"))
        proxy = await stack.enter_async_context(parts.nginx(engine.port, folder))
        await gateway.say(f"route http://127.0.0.1:{engine.port}")
        ports = {DIRECT: engine.port, OURS: gateway.port, **({} if proxy is None else {NGINX: proxy.port})}
        levels = await compare(ports, plan, progress)
        held = await hold(gateway, engine.port, plan.held, progress)
    task = progress.add_task("vnpu-watch", total=1)
    share = await parts.watch_share(MODELS, plan.watched)
    progress.advance(task)
    return result(levels, held, share, limit)


def result(levels: dict[int, Level], held: Kept, share: float, limit: int) -> Result:
    ratios = {"added_ttft_p99": figures.ratio(levels[JUDGED_TTFT].added_ttft(OURS))}
    values = {"held_kb": held.bytes_each / 1000, "watch_core_share": share}
    notes = [f"open files: {limit}", *(f"held, answered {status}: {count}" for status, count in held.statuses.items())]
    for streams, level in levels.items():
        others = [path for path in level.runs if path != OURS]
        for other in others:
            ratios[f"rps_over_{other}_{streams}"] = figures.ratio(level.rps(OURS, other))
        for path, runs in level.runs.items():
            values[f"rps_{path}_{streams}"] = statistics.median(one.rps for one in runs)
            values[f"ttft_p99_ms_{path}_{streams}"] = 1e3 * statistics.median(p99(one.ttft) for one in runs)
        failed = {path: sum(one.failed for one in runs) for path, runs in level.runs.items()}
        notes.append(f"{streams} streams: {level.dropped} pairs dropped because memcpy drifted; failed {failed}")
    if NGINX not in levels[1].runs:
        notes.append("nginx is not installed here: not compared")
    return Result(
        benchmark="gateway",
        version=figures.version(),
        machine=figures.machine(memcpy.seconds_per_byte()),
        ratios=ratios,
        values=values,
        notes=notes,
    )


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
