"""vLLM's idle workers leave the processor to others."""

from __future__ import annotations

import subprocess
import sys

import pytest

from engine_patch.spin import SPIN_S

SCRIPT = """
import zmq
from engine_patch.spin import spin_briefly
from vllm.distributed.device_communicators.shm_broadcast import SpinCondition
from vllm.utils.network_utils import get_open_zmq_ipc_path
spin_briefly()
spin_briefly()
context, address = zmq.Context(), get_open_zmq_ipc_path()
writer = SpinCondition(is_reader=False, context=context, notify_address=address)
print(SpinCondition(is_reader=True, context=context, notify_address=address).busy_loop_s)
"""


@pytest.mark.engine
def test_a_reader_of_vllms_queue_spins_briefly() -> None:
    """Of the installed vLLM, as its queue makes its readers."""
    shown = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=300, check=True)
    assert shown.stdout.split()[-1] == str(SPIN_S)
