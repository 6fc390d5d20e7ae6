"""The prefill side as a process of its own: `python -m benchmarks.kv_pull.peer CHUNKS`, which are
descriptors and sizes in JSON.

Reads the shared key, then the sizes of its regions, which lie back to back, from standard input, prints one JSON object
with its ports, and serves until its input ends.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import closing
from itertools import accumulate

import msgspec

from transfer.errors import TransferError
from transfer.kv.messages import Answer, Refused, Say
from transfer.kv.mooncake import make_engine, serve
from transfer.kv.reader import Span
from transfer.kv.tcp import SERVICE, KvServer
from transfer.transports.listener import Listener
from transfer.transports.trust import Trust
from transfer.transports.window import Window

LOCAL = "127.0.0.1"


class Ports(msgspec.Struct):
    """`mooncake` is None where it is not installed; `address`: of the memory, in that process, for Mooncake."""

    tcp: int
    mooncake: int | None
    address: int


def laid_out(sizes: Sequence[int]) -> list[tuple[int, int]]:
    """(offset, size) of each, back to back."""
    return list(zip(accumulate(sizes, initial=0), sizes, strict=False))


def refuse(say: Say) -> Answer:
    return Refused(say.request, say.reader, "a benchmark has no session")


def main() -> None:
    chunks = msgspec.json.decode(sys.argv[1], type=list[tuple[int, int]])
    key = bytes.fromhex(sys.stdin.readline())
    sizes = msgspec.json.decode(sys.stdin.readline(), type=list[int])
    with closing(Window(chunks)) as window, window.reading() as address:
        regions = {handle: Span(address + at, length) for handle, (at, length) in enumerate(laid_out(sizes))}
        server = KvServer(regions, refuse)
        with Listener(LOCAL, 0, Trust(key), SERVICE, server.serve) as listener:
            engine = None
            try:
                engine = make_engine(LOCAL)
                serve(engine, {0: Span(address, window.size)})
            except TransferError as error:
                sys.stderr.write(f"{error}\n")
            ports = Ports(listener.port, engine.get_rpc_port() if engine else None, address)
            sys.stdout.write(msgspec.json.encode(ports).decode() + "\n")
            sys.stdout.flush()
            sys.stdin.read()


if __name__ == "__main__":
    main()
