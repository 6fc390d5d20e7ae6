"""`vnpu-watch` asks the admin API: a real one, over a store in memory."""

from __future__ import annotations

import pytest

from coordinator.admin.keyring import hash_key
from coordinator.cli.operate import Operator
from coordinator.core.model import Order, Policy
from coordinator.errors import VnpuError
from tests.helpers.admin import admin


async def test_commands_reach_the_leader_that_etcd_names() -> None:
    async with admin("the key") as bench:
        operator = Operator("", "the key", "")
        await operator.act("wake", "org/b", bench.url)
        assert [(asked.model, asked.order) for asked in bench.core.orders] == [("org/b", Order.RESTORE)]
        for what in ("pin", "drain", "resume"):
            await operator.act(what, "a", bench.url)
        assert await bench.policy("a") == Policy(pin=True)


async def test_a_refusal_says_why_and_what_to_do() -> None:
    async with admin(roles={"read": {"x": hash_key("a reading key of length")}}) as bench:
        for key, words in (("", "VNPU_ADMIN_KEY"), ("a reading key of length", "only reads")):
            with pytest.raises(VnpuError, match=words):
                await Operator("", key, "").act("pin", "a", bench.url)
    async with admin() as bench:
        with pytest.raises(VnpuError, match="there are: a, org/b"):
            await Operator("", "", "").act("pin", "nowhere", bench.url)
        assert (await Operator(bench.url + "/", "", "").act("pin", "a", ""))["model"] == "a"


async def test_the_key_goes_to_no_host_that_only_etcd_names() -> None:
    with pytest.raises(VnpuError, match="the key is not sent there"):
        await Operator("", "the key", "").act("pin", "a", "http://192.0.2.7:80")
    with pytest.raises(VnpuError, match="nobody leads"):
        await Operator("", "the key", "").act("pin", "a", "")
    with pytest.raises(VnpuError, match="does not answer"):
        await Operator("", "the key", "").act("pin", "a", "http://127.0.0.1:9")
