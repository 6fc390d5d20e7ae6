"""An asyncio event loop in virtual time that knows operating-system processes: each can be killed or stopped any time.

Every task and timer belongs to the process in whose context it was made. What belongs to a dead process never runs
again, as after SIGKILL: no `finally`, no farewell. What belongs to a stopped one waits until it goes on, with its
timers overdue, as after SIGSTOP. Nothing here waits for real time or for a file descriptor.
"""

from __future__ import annotations

import asyncio
import heapq
import inspect
from collections import deque
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from contextvars import Context, ContextVar, copy_context
from random import Random
from typing import Any

_PROC: ContextVar[Proc | None] = ContextVar("proc", default=None)


class Deadlock(Exception):
    """Nothing is due any more, and yet somebody is waited for."""


class Proc:
    """An operating-system process: a name, and whether it runs."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.dead = False
        self.stopped = False
        self.overdue: deque[asyncio.Handle] = deque()
        """What did not run."""
        self.context = NOBODY.copy()
        self.context.run(_PROC.set, self)

    @property
    def runs(self) -> bool:
        return not self.dead and not self.stopped


ROUNDS = 5
"""Of cancelling, until what catches a cancellation has given in."""
NOBODY: Context = copy_context()
"""The world outside: networks, disks, clients."""


class _Task(asyncio.Task[Any]):
    """Sets of tasks are walked in an order that does not depend on addresses."""

    number = 0

    def __hash__(self) -> int:
        return self.number


class _Handle(asyncio.Handle):
    """Without what only the debug mode of asyncio wants: a history makes thousands."""

    __slots__ = ()

    def __init__(self, callback: Any, args: Any, loop: Any, context: Context | None) -> None:
        self._context = copy_context() if context is None else context
        self._loop = loop
        self._callback = callback
        self._args = args
        self._cancelled = False
        self._repr = None
        self._source_traceback = None


class _Timer(asyncio.TimerHandle):
    __slots__ = ()

    def __init__(self, when: float, callback: Any, args: Any, loop: Any, context: Context | None) -> None:
        _Handle.__init__(self, callback, args, loop, context)  # type: ignore[arg-type]  # what both have
        self._when = when
        self._scheduled = False

    def cancel(self) -> None:
        self._cancelled = True
        self._callback = self._args = None


class VirtualLoop(asyncio.BaseEventLoop):
    """`steps` counts what has run; beyond `most` the world is said to spin."""

    def __init__(self, rng: Random, most: int = 400_000) -> None:
        super().__init__()
        self._now = 0.0
        self._rng = rng
        self._most = most
        self._tasks = 0
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._timers_made = 0
        self.steps = 0
        self.readers: dict[int, asyncio.Handle] = {}
        self.set_task_factory(self._task)

    def _task(self, loop: asyncio.AbstractEventLoop, coro: Any, context: Context | None = None) -> asyncio.Task[Any]:
        task = _Task(coro, loop=loop, context=context)
        self._tasks += 1
        task.number = self._tasks
        return task

    def time(self) -> float:
        return self._now

    def call_soon(self, callback: Any, *args: Any, context: Context | None = None) -> asyncio.Handle:  # type: ignore[override]
        """As `BaseEventLoop.call_soon`, which looks for mistakes that are not made here."""
        handle = _Handle(callback, args, self, context)
        self._ready.append(handle)  # type: ignore[attr-defined]
        return handle

    def call_later(
        self, delay: float, callback: Any, *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:  # type: ignore[override]
        return self.call_at(self._now + delay, callback, *args, context=context)

    def call_at(self, when: float, callback: Any, *args: Any, context: Context | None = None) -> asyncio.TimerHandle:  # type: ignore[override]
        """As `BaseEventLoop.call_at`, on a heap of tuples, which compare faster than handles."""
        timer = _Timer(when, callback, args, self, context)
        self._timers_made += 1
        heapq.heappush(self._timers, (when, self._timers_made, timer))
        return timer

    def _run_once(self) -> None:
        """As `BaseEventLoop._run_once`, without a selector."""
        ready, timers = self._ready, self._timers  # type: ignore[attr-defined]
        while timers and timers[0][2]._cancelled:
            heapq.heappop(timers)
        if not ready and not self._stopping:  # type: ignore[attr-defined]
            if not timers:
                raise Deadlock("nothing is due any more")
            self._now = max(self._now, timers[0][0])
        while timers and timers[0][0] <= self._now:
            ready.append(heapq.heappop(timers)[2])
        self.steps += len(ready)
        if self.steps > self._most:
            raise Deadlock(f"{self.steps} steps: somebody spins")
        for _ in range(len(ready)):
            handle = ready.popleft()
            if handle._cancelled:
                continue
            context = handle._context
            proc = context.get(_PROC)
            if proc is not None and (proc.dead or proc.stopped):
                proc.overdue.append(handle)
                continue
            try:  # as `Handle._run`, one call less
                context.run(handle._callback, *handle._args)
            except (SystemExit, KeyboardInterrupt):
                raise
            except BaseException as error:  # noqa: BLE001  # handed on
                self.call_exception_handler({"message": f"in {handle!r}", "exception": error, "handle": handle})

    def go_on(self, proc: Proc) -> None:
        """A stopped process goes on."""
        proc.stopped = False
        if not proc.dead:
            self._ready.extend(proc.overdue)  # type: ignore[attr-defined]
            proc.overdue.clear()

    def put_away(self, procs: Iterable[Proc]) -> None:
        """The end of the world: every coroutine ends, those of the dead too, and the loop is closed."""
        for proc in procs:
            proc.dead = False
            self.go_on(proc)
        for _ in range(ROUNDS):
            left = asyncio.all_tasks(self)
            if not left:
                break
            for task in left:
                task.cancel()
            self._most = self.steps + 100_000
            with suppress(Deadlock):
                self.run_until_complete(asyncio.wait(left, timeout=10.0))
        self.close()

    # ---- what asyncio wants of a loop

    def _process_events(self, event_list: object) -> None:
        pass

    def _write_to_self(self) -> None:
        pass

    def _asyncgen_finalizer_hook(self, agen: Any) -> None:
        pass

    def add_reader(self, fd: Any, callback: Callable[..., Any], *args: Any) -> None:
        """`fire` makes it readable."""
        self.readers[fd] = asyncio.Handle(callback, args, self, copy_context())

    def remove_reader(self, fd: Any) -> bool:
        return self.readers.pop(fd, None) is not None

    def fire(self, fd: int) -> None:
        handle = self.readers.get(fd)
        if handle is not None:
            self._ready.append(handle)  # type: ignore[attr-defined]

    def run_in_executor(self, executor: object, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:  # type: ignore[override]
        """A thread's work takes a moment; where it is a coroutine in disguise, it is run."""
        done: asyncio.Future[Any] = self.create_future()
        self.call_later(self._rng.choice((0.0, 0.0, 0.001, 0.005)), self._work, func, args, done)
        return done

    def _work(self, func: Callable[..., Any], args: tuple[Any, ...], done: asyncio.Future[Any]) -> None:
        task = self.create_task(_done_by(func, args))
        task.add_done_callback(lambda task: _pass_on(task, done))

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:
        pass


async def _done_by(func: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    result = func(*args)
    return await result if inspect.iscoroutine(result) else result


def _pass_on(task: asyncio.Task[Any], done: asyncio.Future[Any]) -> None:
    if task.cancelled():
        done.cancel()
    elif done.done():
        task.exception()
    elif (error := task.exception()) is not None:
        done.set_exception(error)
    else:
        done.set_result(task.result())


def current() -> Proc:
    """The process that runs now."""
    proc = _PROC.get()
    if proc is None:
        raise LookupError("no process runs")
    return proc


def spawn(
    loop: VirtualLoop, proc: Proc, coro: Coroutine[Any, Any, Any], died: Callable[[BaseException], None]
) -> asyncio.Task[Any]:
    """The first task of a process; `died` is told where it ends of an exception."""
    task = loop.create_task(coro, context=proc.context)

    def over(task: asyncio.Task[Any]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            died(cause(error))

    task.add_done_callback(over, context=NOBODY)
    return task


def cause(error: BaseException) -> BaseException:
    """The first of a group's."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
