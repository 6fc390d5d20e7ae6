"""`python tests/helpers/parent.py`: starts a child that dies with its parent, prints its pid, waits to be killed."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from multiprocessing.connection import Connection


def child(ready: Connection) -> None:
    from engine_patch import family

    family.die_with_parent()
    ready.send(os.getpid())
    time.sleep(600)


if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    context.Process(target=child, args=(theirs,)).start()
    sys.stdout.write(f"{ours.recv()}\n")
    sys.stdout.flush()
    time.sleep(600)
