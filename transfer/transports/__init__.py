"""How bytes get from one process to another: framed TCP with checks, deadlines, authentication and a rate limit; and
beside it, where both ends agree, memory of the source that is mapped (`window`) or torch.distributed (`collective`).

    with Listener(host, port, trust, b"weights", serve) as listener: ...             # a thread for each client
    with dial(host, port, trust, b"weights", Deadline.after(5)) as channel: ...      # used by one thread

`frame` has the byte layout and `handshake` the proofs (both pure), `bucket` the rate limit (pure), `channel` the
blocking socket. Sockets block, each in a thread of its own: an event loop would copy slower and hold up its other
tasks. Control that is asyncio (the agent) never touches them.
"""
