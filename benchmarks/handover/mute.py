"""The real node daemon that leaves the leases of the dead to expire: `python -m benchmarks.handover.mute PYTHON -m
native.daemon ARGUMENT…`, as a command to run it under. Everything else is as ever: it proves deaths by pidfd, takes
pages back, closes, publishes."""

from __future__ import annotations

import sys

from native.daemon.__main__ import main
from native.daemon.node import Node


def keep_leases(node: Node) -> None:
    """Instead of revoking them."""


if __name__ == "__main__":
    Node._revoke_leases_of_the_dead = keep_leases  # type: ignore[method-assign]
    raise SystemExit(main(sys.argv[4:]))
