"""A process that campaigns, says when it leads, and stays: `python -m tests.helpers.candidate URL PREFIX TTL`."""

from __future__ import annotations

import asyncio
import sys

from coordinator.store import connect
from coordinator.store.election import Election
from coordinator.store.session import open_session


async def main(url: str, prefix: str, ttl: int) -> None:
    store = connect([url], environ={})
    async with open_session(store, ttl) as session:
        election = Election(store, session, b"process", prefix=prefix)
        mine = await election.campaign()
        print(mine.key, flush=True)  # noqa: T201 - its whole purpose
        await election.until_lost(mine)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
