"""A device that takes time and neither core nor GIL: a process of its own which waits as long as a step takes.

vLLM loads `install` as a general plugin from a distribution that `plugin.plugged` writes: nothing of it is in the
product. In a worker it replaces the forward pass alone. Its answer is there at once and means nothing; what the host
would do with a real one waits where CUDA's stream order would make it wait: an event that was recorded after n steps
has happened when the device has done n (CUDA runtime API, "Event Management"), and a synchronous runner waits before it
samples.
"""

from __future__ import annotations

import functools
import mmap
import os
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Self

BOARD = "BENCH_DEVICE_BOARD"
"""Environment: the file that both ends map: seconds a step takes, seconds the device was busy, steps it did."""
FORMAT = struct.Struct("=3d")
GO = b"."


class Board:
    """What the benchmark says to the device of one engine, and the other way round."""

    def __init__(self, path: Path) -> None:
        if not path.exists():
            path.write_bytes(bytes(FORMAT.size))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), FORMAT.size)

    @property
    def step_s(self) -> float:
        return float(FORMAT.unpack_from(self._map)[0])

    @step_s.setter
    def step_s(self, value: float) -> None:
        struct.pack_into("=d", self._map, 0, value)

    @property
    def done(self) -> tuple[float, float]:
        """Seconds busy, steps."""
        _, busy, steps = FORMAT.unpack_from(self._map)
        return busy, steps

    def add(self, seconds: float) -> None:
        busy, steps = self.done
        struct.pack_into("=2d", self._map, 8, busy + seconds, steps + 1)


class Device:
    """Its host's end: `submit` a step, `wait` until the n-th is done. From any thread."""

    def __init__(self, board: Path) -> None:
        self._board = Board(board)
        command = [sys.executable, "-m", "benchmarks.async_runner.device", str(board)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        self._reading = threading.Lock()
        self._done = 0
        self.submitted = 0

    @classmethod
    @functools.cache
    def here(cls) -> Self:
        """This process's."""
        return cls(Path(os.environ[BOARD]))

    def submit(self) -> None:
        if self._board.step_s == 0 or self._process.stdin is None:
            return
        self._process.stdin.write(GO)
        self.submitted += 1

    def wait(self, number: int) -> None:
        """Raises EOFError where the device has died."""
        while self._done < number:
            with self._reading:
                if self._done < number:
                    self._done += self._ended()

    def _ended(self) -> int:
        """Steps that have ended since, one at least; the GIL is free meanwhile."""
        if self._process.stdout is None or not (ended := self._process.stdout.read(64)):
            raise EOFError("the emulated device has died")
        return len(ended)


class Event:
    """In place of torch.cuda.Event."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        self._number = 0

    def record(self, stream: object = None) -> None:
        self._number = Device.here().submitted

    def synchronize(self) -> None:
        Device.here().wait(self._number)


def install() -> None:
    """In a worker process; idempotent."""
    import torch
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner

    from engine_patch import runner

    def forward(self: Any, input_ids: Any, *args: object, **kwargs: object) -> Any:
        device = Device.here()
        device.submit()
        if not self.use_async_scheduling:
            device.wait(device.submitted)
        return torch.zeros(len(input_ids), self.model_config.get_hidden_size(), dtype=self.dtype)

    runner.Past.record, runner.Past.synchronize = Event.record, Event.synchronize  # type: ignore[method-assign,assignment]
    runner.Past.__init__ = Event.__init__  # type: ignore[method-assign,assignment]
    CPUModelRunner._model_forward = forward


def main(board: Board) -> None:
    """The device: steps in order, each as long as the board says when it begins."""
    while os.read(0, 1):
        begun = time.perf_counter()
        time.sleep(board.step_s)
        board.add(time.perf_counter() - begun)
        os.write(1, GO)


if __name__ == "__main__":
    main(Board(Path(sys.argv[1])))
