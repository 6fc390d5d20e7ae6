"""The session's deadline, in virtual time: what is certain about a lease, and when nobody can say any more."""

from __future__ import annotations

import asyncio

import pytest

from coordinator.errors import StoreUnavailable
from coordinator.store.memory import Fault, MemoryEtcd, MemoryStore
from coordinator.store.session import open_session
from tests.helpers.clock import VirtualClockLoop, run_virtual
from tests.helpers.store import put


class Line:
    """A network whose quality is set by the test."""

    def __init__(self) -> None:
        self.fault = Fault()
        self.calls: list[tuple[str, float]] = []

    def __call__(self, verb: str) -> Fault:
        self.calls.append((verb, asyncio.get_running_loop().time()))
        return self.fault

    def times(self, verb: str) -> list[float]:
        return [at for called, at in self.calls if called == verb]


def client(line: Line, timeout: float = 2.0) -> MemoryStore:
    return MemoryEtcd().client(faults=line, timeout=timeout)


def test_a_keep_alive_goes_out_every_fifth_of_the_ttl() -> None:
    async def main() -> None:
        line = Line()
        async with open_session(client(line), 5):
            await asyncio.sleep(4.5)
        assert line.times("keep_alive") == [1.0, 2.0, 3.0, 4.0]

    run_virtual(main())


def test_the_deadline_counts_from_when_the_last_success_was_sent() -> None:
    async def main() -> None:
        line = Line()
        line.fault = Fault(delay=0.3, reply_delay=0.4)
        async with open_session(client(line), 5) as session:
            assert session.deadline == 0.0 + 5  # granted in a call sent at 0.0
            await asyncio.sleep(1.5)  # the first keep-alive was sent at 0.7 + 1, its answer is not here yet
            assert session.deadline == 5.0
            await asyncio.sleep(0.3)
            assert session.deadline == pytest.approx(1.7 + 5)

    run_virtual(main())


def test_silence_ends_the_session_at_its_deadline_and_not_before() -> None:
    async def main() -> None:
        line = Line()
        async with open_session(client(line), 5) as session:
            await asyncio.sleep(2.5)
            line.fault = Fault(lose_request=True)
            await session.lost.wait()
            assert asyncio.get_running_loop().time() == pytest.approx(2 + 5)
            assert not session.alive

    run_virtual(main())


def test_a_short_outage_is_survived() -> None:
    async def main() -> None:
        line = Line()
        async with open_session(client(line), 5) as session:
            await asyncio.sleep(1.5)
            line.fault = Fault(lose_reply=True)
            await asyncio.sleep(3)
            line.fault = Fault()
            await asyncio.sleep(60)
            assert session.alive

    run_virtual(main())


def test_a_process_that_was_paused_knows_before_any_task_ran() -> None:
    """SIGSTOP past the TTL: the clock has moved, the keep-alive task has not run yet."""

    async def main() -> None:
        now = [0.0]
        async with open_session(client(Line()), 5, clock=lambda: now[0]) as session:
            now[0] = 4.9
            assert session.alive
            now[0] = 5.0
            assert not session.alive
            assert not session.lost.is_set()

    run_virtual(main())


def test_no_keep_alive_is_sent_while_the_engine_is_not_healthy() -> None:
    async def main() -> None:
        line = Line()
        healthy = True
        async with open_session(client(line), 5, healthy=lambda: healthy) as session:
            await asyncio.sleep(2.5)
            healthy = False
            await session.lost.wait()
            assert line.times("keep_alive") == [1.0, 2.0]
            assert asyncio.get_running_loop().time() == pytest.approx(7.0)

    run_virtual(main())


def test_a_keeper_that_fails_loses_the_session_at_once() -> None:
    async def main() -> None:
        def healthy() -> bool:
            raise RuntimeError("broken")

        async def held() -> None:
            async with open_session(client(Line()), 5, healthy=healthy) as session:
                await session.lost.wait()
                assert asyncio.get_running_loop().time() == 1.0

        with pytest.raises(RuntimeError, match="broken"):
            await held()

    run_virtual(main())


def test_the_keys_of_a_lost_session_are_gone_from_etcd_by_its_deadline() -> None:
    """The deadline is on the safe side: etcd's own count began later."""

    async def main() -> None:
        server = MemoryEtcd()
        line = Line()
        store = server.client(faults=line, timeout=2.0)
        async with open_session(store, 5) as session:
            await put(store, "/a", lease=session.lease)
            line.fault = Fault(lose_request=True)
            await session.lost.wait()
            assert server.mvcc.get("/a") is not None or asyncio.get_running_loop().time() >= 5
            await asyncio.sleep(0.1)
            assert server.mvcc.get("/a") is None

    run_virtual(main())


def test_the_end_of_a_session_revokes_its_lease_even_when_cancelled() -> None:
    async def main() -> None:
        server = MemoryEtcd()
        store = server.client()

        async def work() -> None:
            async with open_session(store, 5) as session:
                await put(store, "/a", lease=session.lease)
                await asyncio.Event().wait()

        task = asyncio.create_task(work())
        await asyncio.sleep(1)
        assert server.mvcc.get("/a")
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert server.mvcc.get("/a") is None
        assert asyncio.all_tasks() == {asyncio.current_task()}

    run_virtual(main())


def test_an_exception_in_its_body_comes_out_as_it_is() -> None:
    async def main() -> None:
        with pytest.raises(ZeroDivisionError):
            async with open_session(client(Line()), 5):
                raise ZeroDivisionError

    run_virtual(main())


def test_without_etcd_no_session_opens_and_closing_waits_for_nobody() -> None:
    async def main() -> None:
        line = Line()
        line.fault = Fault(lose_request=True)
        with pytest.raises(StoreUnavailable):
            async with open_session(client(line), 5):
                pass
        line.fault = Fault()
        async with open_session(client(line, timeout=3600.0), 5):
            line.fault = Fault(lose_request=True)
            begun = asyncio.get_running_loop().time()
        assert asyncio.get_running_loop().time() - begun == pytest.approx(2.0)

    run_virtual(main())


def test_virtual_time_takes_a_deadlock_for_an_error() -> None:
    async def main() -> None:
        await asyncio.Event().wait()

    loop = VirtualClockLoop()
    task = loop.create_task(main())
    with pytest.raises(RuntimeError, match="deadlock"):
        loop.run_until_complete(task)
    task.cancel()
    loop.run_until_complete(asyncio.gather(task, return_exceptions=True))
    loop.close()
