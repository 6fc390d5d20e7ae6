"""The client in a process of its own, so that nothing but asking takes its time: `python -m benchmarks.gateway.asking`.

Lines on standard input: `run PORT STREAMS SECONDS`, with `herd` after it for answers in steps, answered by a `Told`;
`hold PORT COUNT`, answered by `null` when all have been asked; `answers`, answered by the statuses of those that were
held."""

from __future__ import annotations

import asyncio
import sys
import time

import msgspec
import uvloop

from benchmarks.gateway.client import BODY, HERD, Held, Run, measure
from coordinator.process import raise_file_limit
from coordinator.store.prompt import be_prompt


class Told(msgspec.Struct):
    """A run, and the CPU seconds that asking took."""

    run: Run
    cpu: float


async def serve() -> None:
    """Until standard input ends."""
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    held: Held | None = None
    while line := (await lines.readline()).decode().split():
        said: Told | list[int] | None = None
        if line[0] == "run":
            before = time.process_time()
            body = HERD if line[4:] == ["herd"] else BODY
            run = await measure(int(line[1]), int(line[2]), float(line[3]), body)
            said = Told(run, time.process_time() - before)
        elif line[0] == "hold":
            held = Held(int(line[1]), int(line[2]))
            await held.ask()
        elif held is not None:
            await held.answers()
            said = held.statuses
        sys.stdout.buffer.write(msgspec.json.encode(said) + b"\n")
        sys.stdout.flush()


if __name__ == "__main__":
    raise_file_limit()
    be_prompt()  # a client is elsewhere: it must not wait for a processor until what it measures lets go of one
    sys.stdout.write("0\n")
    sys.stdout.flush()
    uvloop.run(serve())
