"""Engines on a device: the real agent, memory hands and daemon over the simulated vendor libraries. Their pages cannot
be touched by address there, so every byte came and went by streams."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from coordinator.core.model import Order, Phase
from tests.helpers.etcd import RealEtcd
from tests.helpers.light_lab import LightLab, light_lab
from tests.helpers.simulator import card, environment

MIB = 1 << 20


@pytest.fixture(params=["ascend", "cuda"])
async def lab(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, etcd: RealEtcd
) -> AsyncIterator[LightLab]:
    name: str = request.param
    card()
    for key, value in environment(name).items():
        monkeypatch.setenv(key, value)
    monkeypatch.setenv("VNPU_DRIVER", name)
    async with light_lab(tmp_path, etcd, 24 * MIB, driver=name) as one:
        yield one


async def test_two_engines_take_turns_on_a_device_and_the_killed_ones_pages_go_on(lab: LightLab) -> None:
    async with await lab.bring_up(size=14 * MIB) as first:
        before = await first.ask("prompt")
        assert before[0] == 200
        offloaded = await lab.order(first, Order.OFFLOAD)
        assert (offloaded.held.total, offloaded.d2h, offloaded.kv_saved) == (0, 0, 4096)
        async with await lab.bring_up(size=14 * MIB) as second:
            others = await second.ask("prompt")
            assert others[1] != before[1]
            await lab.order(second, Order.OFFLOAD)
            restored = await lab.order(first, Order.RESTORE)
            assert restored.phase is Phase.RESIDENT
            assert restored.restored > 4096  # what the other needed of its pages
            assert {"map", "copy", "check"} <= {step.name for step in restored.steps}
            assert await first.ask("prompt") == before
            assert "not locked" not in first.log.read_text()

            first.kill()
            await first.ended()
            await lab.leader.until(lab.device, lambda state: not state.owners)
            await lab.order(second, Order.RESTORE)
            assert await second.ask("prompt") == others


async def test_bytes_that_did_not_come_back_open_no_gate(lab: LightLab) -> None:
    """The canary looks at the device through its own copies."""
    async with await lab.bring_up(size=14 * MIB, fault="skip") as engine:
        await lab.order(engine, Order.OFFLOAD)
        async with await lab.bring_up(size=14 * MIB) as other:
            await lab.order(other, Order.OFFLOAD)
            await lab.grant(engine, Order.RESTORE)
            assert await engine.ended() == 1
        assert "pieces of the weights came back wrong" in engine.log.read_text()


async def test_a_forward_pass_may_overlap_the_restore(lab: LightLab) -> None:
    """Held open between the start of the copy and its end: requests are answered meanwhile."""
    async with await lab.bring_up(hold=("settle",)) as engine:
        before = await engine.ask("prompt")
        await lab.order(engine, Order.OFFLOAD)
        await lab.grant(engine, Order.RESTORE)
        await engine.at("settle")
        assert await engine.ask("prompt") == before
        engine.go_on()
        await lab.residency(engine, lambda residency: residency.phase is Phase.RESIDENT)
