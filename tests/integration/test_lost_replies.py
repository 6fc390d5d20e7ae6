"""Two whole coordinators on a store that loses replies and cuts them off: whatever happens, nobody is granted what
another holds, and everybody is served in the end."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

import pytest

from coordinator.core.settings import Settings as ModelSettings
from coordinator.store.memory import Fault, MemoryEtcd
from tests.helpers.coordinator import Coordinator, coordinator
from tests.helpers.stub_engine import node

HASTY = ModelSettings(keep_alive=None, min_residency=0.0, max_wait=90.0)


def unreliable(rng: random.Random, share: float) -> Callable[[str], Fault]:
    """Loses the reply, or the request, of a share of all transactions."""

    def fault(verb: str) -> Fault:
        if verb == "txn" and rng.random() < share:
            return Fault(lose_reply=True) if rng.random() < 0.7 else Fault(lose_request=True)
        return Fault()

    return fault


async def served(c: Coordinator, model: str) -> None:
    """As a client that tries again when it is told to."""
    while True:
        status, answer = await c.ask(model)
        if status == 200:
            assert answer["choices"][0]["text"] == f"from {model}"
            return
        assert status == 503


@pytest.mark.parametrize("seed", range(3))
async def test_everybody_is_served_and_nothing_is_granted_twice(seed: int) -> None:
    rng = random.Random(seed)
    etcd = MemoryEtcd(rng=random.Random(seed))
    stores = [etcd.client(timeout=0.05, faults=unreliable(rng, 0.2)) for _ in range(2)]
    async with (
        coordinator(stores[0], "c1", defaults=HASTY, lease_ttl=2) as c1,
        coordinator(stores[1], "c2", defaults=HASTY, lease_ttl=2) as c2,
        node(etcd.client(), {"a": 60, "b": 60, "c": 30}, 100) as n,
    ):
        for turn in range(12):
            if turn % 4 == 3:
                leader = stores[0] if c1.runtime.leading else stores[1]
                leader.partition()
                asyncio.get_running_loop().call_later(rng.uniform(0.5, 4.0), leader.heal)
            await asyncio.gather(*(served(rng.choice((c1, c2)), rng.choice("abc")) for _ in range(8)))
    assert n.daemon.worst <= 100
    fences = [revision for revision, _, _ in n.daemon.entered]
    assert fences == sorted(set(fences))
    assert len(fences) > 6
