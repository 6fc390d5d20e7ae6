"""The prefill side as a process of its own: `python -m benchmarks.kv_pull.peer DESCRIPTOR SIZE`.

Reads the shared key from standard input, prints one JSON object with its ports, and serves until its input ends.
"""

from __future__ import annotations

import sys
from contextlib import closing

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


def refuse(say: Say) -> Answer:
    return Refused(say.request, say.reader, "a benchmark has no session")


def main() -> None:
    descriptor, size = (int(argument) for argument in sys.argv[1:])
    key = bytes.fromhex(sys.stdin.readline())
    with closing(Window([(descriptor, size)])) as window, window.reading() as address:
        memory = Span(address, size)
        server = KvServer({0: memory}, refuse)
        with Listener(LOCAL, 0, Trust(key), SERVICE, server.serve) as listener:
            engine = None
            try:
                engine = make_engine(LOCAL)
                serve(engine, {0: memory})
            except TransferError as error:
                sys.stderr.write(f"{error}\n")
            ports = Ports(listener.port, engine.get_rpc_port() if engine else None, memory.address)
            sys.stdout.write(msgspec.json.encode(ports).decode() + "\n")
            sys.stdout.flush()
            sys.stdin.read()


if __name__ == "__main__":
    main()
