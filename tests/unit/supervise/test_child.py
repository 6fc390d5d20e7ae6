"""Nothing of a child's group is left, not even a dead one that nobody waited for."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from coordinator.supervise import child, group
from coordinator.supervise.child import Child


async def test_who_dies_while_its_group_is_looked_at_is_reaped(monkeypatch: pytest.MonkeyPatch) -> None:
    alive, dead = [7], []

    def members(_: int) -> list[int]:
        """Its last process dies when it is looked at."""
        dead.extend(alive)
        alive.clear()
        return []

    def reap(_: int) -> bool:
        found = bool(dead)
        dead.clear()
        return found

    monkeypatch.setattr(group, "members", members)
    monkeypatch.setattr(group, "kill", lambda _: None)
    monkeypatch.setattr(child, "_reap", reap)
    swept = Child.__new__(Child)
    swept._process = SimpleNamespace(pid=6)  # type: ignore[assignment]
    swept._guard = SimpleNamespace(forget=lambda _: None)  # type: ignore[assignment]
    await swept._sweep()
    assert (alive, dead) == ([], [])
