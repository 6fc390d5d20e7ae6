"""vLLM's idle workers leave the processor to others."""

from __future__ import annotations

import subprocess
import sys

import pytest

from engine_patch.spin import LOOK_MS, SPIN_S

SCRIPT = """
import time
import zmq
from engine_patch import spin
from vllm.distributed.device_communicators.shm_broadcast import SpinCondition
from vllm.utils.network_utils import get_open_zmq_ipc_path
spin.spin_briefly()
spin.spin_briefly()
context, address = zmq.Context(), get_open_zmq_ipc_path()
writer = SpinCondition(is_reader=False, context=context, notify_address=address)
reader = SpinCondition(is_reader=True, context=context, notify_address=address)
class Poller:
    def poll(self, timeout=None):
        self.asked = timeout
        return []
def slept(after_s=0.0, timeout_ms=None):
    reader.poller, reader.last_read = Poller(), time.monotonic() - after_s
    reader.wait(timeout_ms)
    return getattr(reader.poller, "asked", "spun")
print(reader.busy_loop_s)
reader.busy_loop_s = 3600.0
print(slept(), slept(7200.0), slept(7200.0, 5))
spin.work()
print(slept())
spin.rest()
print(slept(), slept(7200.0), slept(0.0, 0), reader.busy_loop_s)
spin.work(3600.0)
print(slept())
spin.rest()
spin.work()
print(slept())
spin.lull(True)
print(slept(), slept(7200.0))
spin.work()
print(slept())
spin.lull(False)
print(slept())
"""


@pytest.mark.engine
def test_a_reader_of_vllms_queue_spins_briefly_and_looks_now_and_then_while_it_rests() -> None:
    """Of the installed vLLM, as its queue makes its readers: for how many milliseconds it would sleep at most."""
    shown = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=300, check=True)
    own, spinning, unrested, resting, still, working, *lull = shown.stdout.splitlines()[-9:]
    assert own == str(SPIN_S)
    assert spinning == "spun None 5"
    assert unrested == "spun"
    assert resting == f"{LOOK_MS} None 0 3600.0"
    assert still == str(LOOK_MS)
    assert working == "spun"
    assert lull == [f"{LOOK_MS} None", str(LOOK_MS), "spun"]
