"""An asyncio event loop in virtual time that knows operating-system processes: each can be killed or stopped any time.

Every task and timer belongs to the process in whose context it was made. What belongs to a dead process never runs
again, as after SIGKILL: no `finally`, no farewell. What belongs to a stopped one waits until it goes on, with its
timers overdue, as after SIGSTOP. Nothing here waits for real time or for a file descriptor.
"""

from __future__ import annotations

import asyncio
import inspect
from collections import deque
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from contextvars import Context, ContextVar, copy_context
from functools import partial
from heapq import heappop, heappush
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
        self.overdue: deque[_Due] = deque()
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


class _Due(list[Any]):
    """A callback that is due: [when, number, context, callback, arguments]. As a list it is made without a constructor
    in Python and compares, in a heap, by when and number; a history makes ten thousand."""

    __slots__ = ()

    def cancel(self) -> None:
        self[3], self[4] = None, ()

    def cancelled(self) -> bool:
        return self[3] is None

    def when(self) -> float:
        return self[0]  # type: ignore[no-any-return]


class Limit:
    """As `asyncio.timeout`, which looks for mistakes that are not made here; entered three thousand times a history."""

    __slots__ = ("_before", "_expired", "_task", "_timer", "_when")

    def __init__(self, delay: float | None) -> None:
        self._when = None if delay is None else asyncio.get_running_loop().time() + delay
        self._expired = False

    async def __aenter__(self) -> Limit:
        loop = asyncio.get_running_loop()
        task = asyncio.current_task(loop)
        if task is None:
            raise RuntimeError("no task waits here")
        self._task, self._before = task, task.cancelling()
        self._timer = None if self._when is None else loop.call_at(self._when, self._expire)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._expired and self._task.uncancel() <= self._before and kind is asyncio.CancelledError:
            raise TimeoutError from error

    def _expire(self) -> None:
        self._expired = True
        self._task.cancel()


class VirtualLoop(asyncio.BaseEventLoop):
    """`steps` counts what has run; beyond `most` the world is said to spin."""

    def __init__(self, rng: Random, most: int = 400_000) -> None:
        super().__init__()
        self._now = 0.0
        self._rng = rng
        self._most = most
        self._tasks = 0
        self._timers: list[_Due] = []
        self._timers_made = 0
        self.steps = 0
        self.readers: dict[int, _Due] = {}
        self.set_task_factory(self._task)
        self.create_future = partial(asyncio.Future, loop=self)  # type: ignore[method-assign]

    def _task(self, loop: asyncio.AbstractEventLoop, coro: Any, context: Context | None = None) -> asyncio.Task[Any]:
        """It is registered, by its hash, as soon as it begins."""
        task = _Task.__new__(_Task)
        self._tasks += 1
        task.number = self._tasks
        task.__init__(coro, loop=loop, context=context)  # type: ignore[misc]
        return task

    def time(self) -> float:
        return self._now

    def call_soon(self, callback: Any, *args: Any, context: Context | None = None) -> asyncio.Handle:  # type: ignore[override]
        """As `BaseEventLoop.call_soon`, which looks for mistakes that are not made here."""
        due = _Due((0.0, 0, copy_context() if context is None else context, callback, args))
        self._ready.append(due)  # type: ignore[attr-defined]
        return due  # type: ignore[return-value]

    def call_later(
        self, delay: float, callback: Any, *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:  # type: ignore[override]
        return self.call_at(self._now + delay, callback, *args, context=context)

    def call_at(self, when: float, callback: Any, *args: Any, context: Context | None = None) -> asyncio.TimerHandle:  # type: ignore[override]
        self._timers_made += 1
        due = _Due((when, self._timers_made, copy_context() if context is None else context, callback, args))
        heappush(self._timers, due)
        return due  # type: ignore[return-value]

    def _run_once(self) -> None:
        """As `BaseEventLoop._run_once`, without a selector, and again and again until it is to stop."""
        ready, timers = self._ready, self._timers  # type: ignore[attr-defined]
        while True:
            while timers and timers[0][3] is None:
                heappop(timers)
            if not ready and not self._stopping:  # type: ignore[attr-defined]
                if not timers:
                    raise Deadlock("nothing is due any more")
                if timers[0][0] > self._now:
                    self._now = timers[0][0]
            while timers and timers[0][0] <= self._now:
                ready.append(heappop(timers))
            self.steps += len(ready)
            if self.steps > self._most:
                raise Deadlock(f"{self.steps} steps: somebody spins")
            for _ in range(len(ready)):
                due = ready.popleft()
                _, _, context, callback, args = due
                if callback is None:
                    continue
                proc = context.get(_PROC)
                if proc is not None and (proc.dead or proc.stopped):
                    proc.overdue.append(due)
                    continue
                try:
                    context.run(callback, *args)
                except (SystemExit, KeyboardInterrupt):
                    raise
                except BaseException as error:  # noqa: BLE001  # handed on
                    self.call_exception_handler({"message": f"in {callback!r}", "exception": error})
            if self._stopping:  # type: ignore[attr-defined]
                return

    def go_on(self, proc: Proc) -> None:
        """A stopped process goes on."""
        proc.stopped = False
        if not proc.dead:
            self._ready.extend(proc.overdue)  # type: ignore[attr-defined]
            proc.overdue.clear()

    def put_away(self, procs: Iterable[Proc]) -> list[str]:
        """The end of the world: every coroutine ends, those of the dead too, and the loop is closed. Nobody may die or
        begin any more. Returns the names of tasks that would not end."""
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
        return sorted(repr(task.get_coro()) for task in asyncio.all_tasks(self))

    # ---- what asyncio wants of a loop

    def _process_events(self, event_list: object) -> None:
        pass

    def _write_to_self(self) -> None:
        pass

    def _asyncgen_finalizer_hook(self, agen: Any) -> None:
        pass

    def add_reader(self, fd: Any, callback: Callable[..., Any], *args: Any) -> None:
        """`fire` makes it readable."""
        self.readers[fd] = _Due((0.0, 0, copy_context(), callback, args))

    def remove_reader(self, fd: Any) -> bool:
        return self.readers.pop(fd, None) is not None

    def fire(self, fd: int) -> None:
        due = self.readers.get(fd)
        if due is not None:
            self._ready.append(due)  # type: ignore[attr-defined]

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
