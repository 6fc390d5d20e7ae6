"""`python -m native.daemon`: the node daemon as a process. Exit codes: 0 stopped, 1 failed, 2 wrong use."""

from __future__ import annotations

import asyncio
import logging
import resource
import signal
import sys

import uvloop

from coordinator.errors import VnpuError
from coordinator.store import connect, prompt
from coordinator.store.base import Store
from native.connections import SocketError
from native.daemon.device import DeviceFailed
from native.daemon.node import Node
from native.daemon.options import Options, parse
from native.journal import Journal, JournalError
from native.processes import boot_id

log = logging.getLogger("native.daemon")


def main(arguments: list[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT; engines that hold pages keep them and go on."""
    options = parse(arguments)
    logging.basicConfig(
        stream=sys.stderr,
        level=options.log_level,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    _raise_descriptor_limit()
    prompt.be_prompt()
    code = 0
    try:
        journal = Journal(options.state_dir, boot_id())
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(options, journal, connect(options.etcd, vetted=True)))
    except* (VnpuError, DeviceFailed, JournalError, SocketError, OSError) as failures:
        for failure in _leaves(failures):
            log.error("%s", failure)
        code = 1
    return code


async def _serve(options: Options, journal: Journal, store: Store) -> None:
    loop = asyncio.get_running_loop()
    node = Node(options, journal, store)
    serving = asyncio.create_task(node.run(), name="node")
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, serving.cancel)
    log.info("node %s serves on %s", options.node, options.socket)
    try:
        await asyncio.wait((serving,))
        if not serving.cancelled():
            serving.result()
        log.info("node %s stops", options.node)
    finally:
        await store.close()
        journal.close()


def _raise_descriptor_limit() -> None:
    """Each chunk takes two descriptors, each process and connection one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    """The single failures of a group of groups."""
    return [
        leaf for one in group.exceptions for leaf in (_leaves(one) if isinstance(one, BaseExceptionGroup) else [one])
    ]


if __name__ == "__main__":
    sys.exit(main())
