"""A coordinator that runs takes up what its file says now."""

from __future__ import annotations

from pathlib import Path

from coordinator.admin.keyring import hash_key
from coordinator.store.memory import MemoryEtcd
from tests.helpers.coordinator import Coordinator, config_file, configured_coordinator

OPEN = 'gateway: {listen: "127.0.0.1:0"}'


def keyed(key: str) -> str:
    return f'gateway: {{listen: "127.0.0.1:0", max_queue: 3, api_keys: {{anna: "{hash_key(key)}"}}}}'


async def test_keys_of_clients_change_with_the_file(tmp_path: Path) -> None:
    file = config_file(tmp_path, ["a"])
    file.write_text(file.read_text().replace(OPEN, keyed("old")))
    async with configured_coordinator(MemoryEtcd().client(timeout=5.0), file) as c:
        assert [await models(c, key) for key in ("old", "new", "")] == [200, 401, 401]
        file.write_text(file.read_text().replace(keyed("old"), keyed("new")))
        assert (await c.admin("POST", "/v1/config/reload")) == (200, {"applied": ["gateway.api_keys"], "waits": []})
        assert [await models(c, key) for key in ("old", "new", "")] == [401, 200, 401]


async def models(c: Coordinator, key: str) -> int:
    return await c.status("/v1/models", {"Authorization": f"Bearer {key}"} if key else {})
