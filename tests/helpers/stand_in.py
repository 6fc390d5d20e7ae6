"""Stands in for the Python that `vnpu up` starts the parts of a node with: each part only publishes that it is there.

`STAND_IN_FAIL` names a module, or an engine, that ends with status 3 at once; `STAND_IN_STUBBORN` a module that ignores
SIGTERM; `STAND_IN_HOLD` a file: engines come up once it is there.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import msgspec

from coordinator.core import model
from coordinator.store import connect, keys
from coordinator.store.base import Put


def option(name: str) -> str:
    return sys.argv[sys.argv.index(name) + 1]


def daemon_keys() -> dict[str, model.Value]:
    node = option("--node")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(option("--socket"))
    device, driver, capacity = option("--device").split(":")
    here = model.Daemon(socket=option("--socket"), boot_id="b", pid=os.getpid(), version="0")
    found = model.Device(driver=driver, capacity=int(capacity), chunk=1 << 21, epoch="e")
    return {keys.device(f"{node}/{device}"): found, keys.daemon(node): here}


def coordinator_keys() -> dict[str, model.Value]:
    me = option("--id")
    urls = {"admin_url": f"http://admin.{os.getpid()}", "gateway_url": f"http://gateway.{os.getpid()}"}
    return {keys.coordinator(me): model.Coordinator(id=me, pid=os.getpid(), **urls)}


def engine_keys() -> dict[str, model.Value]:
    hold = os.environ.get("STAND_IN_HOLD")
    while hold and not Path(hold).exists():
        time.sleep(0.05)
    name = os.environ["VNPU_ENGINE_ID"]
    holder = model.Holder(name, str(os.getpid()))
    spec = model.Spec(
        holder=holder,
        model=name,
        url=f"http://127.0.0.1:{option('--port')}",
        devices=(f"{os.environ['VNPU_NODE']}/{os.environ['VNPU_DEVICE']}",),
        pid=os.getpid(),
        boot_id="b",
        footprint=model.Bytes(weights=1 << 20),
    )
    here = model.Residency(holder=holder, phase=model.Phase.RESIDENT)
    return {keys.spec(name): spec, keys.residency(name): here}


PARTS = {
    "native.daemon": daemon_keys,
    "coordinator": coordinator_keys,
    "vllm.entrypoints.openai.api_server": engine_keys,
}


async def publish(endpoints: str, values: dict[str, model.Value]) -> None:
    store = connect(endpoints.split(","))
    for key, value in values.items():
        await store.txn([], [Put(key, msgspec.json.encode(value))])
    await store.close()


def main() -> int:
    module = sys.argv[2]
    if os.environ.get("STAND_IN_FAIL", "-") in (module, os.environ.get("VNPU_ENGINE_ID")):
        sys.stderr.write("cannot\n")
        return 3
    stop = signal.SIG_IGN if os.environ.get("STAND_IN_STUBBORN") == module else lambda *_: sys.exit(0)
    signal.signal(signal.SIGTERM, stop)
    grandchild = subprocess.Popen(["sleep", "1000"])
    sys.stderr.write(f"grandchild {grandchild.pid}\n")
    sys.stderr.write(f"cores {os.environ.get('VLLM_CPU_OMP_THREADS_BIND')}\n")
    endpoints = os.environ.get("VNPU_ETCD_ENDPOINTS") or option("--etcd")
    asyncio.run(publish(endpoints, PARTS[module]()))
    while True:
        signal.pause()


if __name__ == "__main__":
    sys.exit(main())
