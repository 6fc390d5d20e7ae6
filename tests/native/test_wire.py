"""Rows through a stream socket without work in Python for each: whole and in order, or said why not."""

from __future__ import annotations

import errno
import random
import socket
from contextlib import ExitStack

import pytest

from native import _native
from tests.helpers.memory import buffer, read, write
from tests.helpers.wires import meanwhile

LONG_S = 60.0
Rows = list[tuple[int, int]]


def sizes(seed: int) -> list[int]:
    """Of more rows than one call takes, empty ones among them, beyond what a socket buffers."""
    chosen = random.Random(seed)
    return [chosen.choice((0, 1, 63, 512, 4096, 70_000)) for _ in range(700)]


def rows(stack: ExitStack, lengths: list[int], fill: random.Random | None = None) -> Rows:
    made = [(stack.enter_context(buffer(max(1, length))), length) for length in lengths]
    for address, length in made if fill else []:
        write(address, fill.randbytes(length))  # type: ignore[union-attr]
    return made


def content(found: Rows) -> bytes:
    return b"".join(read(address, length) for address, length in found)


@pytest.mark.parametrize("seed", range(3))
def test_rows_arrive_in_order_whatever_their_lengths_are_on_either_side(seed: int) -> None:
    with ExitStack() as stack:
        one, other = socket.socketpair()
        stack.enter_context(one), stack.enter_context(other)
        lengths = sizes(seed)
        source = rows(stack, lengths, random.Random(seed))
        target = rows(stack, random.Random(seed).sample(lengths, len(lengths)))
        sent = meanwhile(lambda: _native.send_rows(one.fileno(), source, LONG_S))
        assert _native.receive_rows(other.fileno(), target, LONG_S) == (0, _native.crc32c_rows(source))
        assert sent() == 0
        assert content(target) == content(source)


def test_the_sum_of_rows_is_that_of_their_bytes() -> None:
    with ExitStack() as stack:
        source = rows(stack, [5, 0, 70_000, 1], random.Random(1))
        (whole,) = rows(stack, [70_006])
        write(whole[0], content(source))
        assert _native.crc32c_rows(source, 7) == _native.crc32c(*whole, 7)
        assert _native.crc32c_rows([], 7) == 7


@pytest.mark.parametrize("lengths", [[256], [512, 65536, 256], [4096] * 40, [300, 512], [256, 0, 512]])
def test_the_sum_of_rows_with_gaps_is_that_of_their_bytes(lengths: list[int]) -> None:
    with ExitStack() as stack:
        source = rows(stack, lengths, random.Random(3))
        (whole,) = rows(stack, [sum(lengths)])
        write(whole[0], content(source))
        assert _native.crc32c_rows(source, 9) == _native.crc32c(*whole, 9, "portable")


def test_who_takes_or_gives_nothing_is_waited_for_until_the_deadline() -> None:
    with ExitStack() as stack:
        one, other = socket.socketpair()
        stack.enter_context(one), stack.enter_context(other)
        many = rows(stack, [1 << 20] * 8)
        assert _native.receive_rows(other.fileno(), many[:1], 0.01) == (errno.ETIMEDOUT, 0)
        assert _native.send_rows(one.fileno(), many, 0.01) == errno.ETIMEDOUT


def test_a_peer_that_is_gone() -> None:
    with ExitStack() as stack:
        one, other = socket.socketpair()
        stack.enter_context(other)
        (source,) = rows(stack, [100], random.Random(2))
        assert _native.send_rows(one.fileno(), [source], LONG_S) == 0
        one.close()
        (target,) = rows(stack, [101])
        assert _native.receive_rows(other.fileno(), [target], LONG_S) == (-1, _native.crc32c(*source))
        assert read(target[0], 100) == read(*source)
        assert _native.send_rows(other.fileno(), [source], LONG_S) == errno.EPIPE
        assert _native.send_rows(-1, [source], LONG_S) == errno.EBADF


DUE = b"a header of 24 bytes...."


def test_a_frame_that_is_the_one_that_is_due() -> None:
    with ExitStack() as stack:
        one, other = socket.socketpair()
        stack.enter_context(one), stack.enter_context(other)
        (source,) = rows(stack, [3 << 20], random.Random(4))
        (target,) = rows(stack, [source[1]])
        one.sendall(DUE)
        sent = meanwhile(lambda: _native.send_rows(one.fileno(), [source], LONG_S))
        assert _native.receive_frame(other.fileno(), DUE, *target, LONG_S) == (0, DUE, _native.crc32c(*source))
        assert sent() == 0
        assert content([target]) == content([source])


def test_a_frame_that_is_another_is_left_where_its_header_ends() -> None:
    with ExitStack() as stack:
        one, other = socket.socketpair()
        stack.enter_context(one), stack.enter_context(other)
        (target,) = rows(stack, [5])
        write(target[0], b"as it")
        one.sendall(DUE.upper() + b"words")
        assert _native.receive_frame(other.fileno(), DUE, *target, LONG_S) == (0, DUE.upper(), 0)
        assert content([target]) == b"as it"
        assert other.recv(100) == b"words"


def test_a_frame_that_does_not_come() -> None:
    with ExitStack() as stack:
        one, other = socket.socketpair()
        stack.enter_context(other)
        (target,) = rows(stack, [5])
        assert _native.receive_frame(other.fileno(), DUE, *target, 0.01)[0] == errno.ETIMEDOUT
        one.sendall(DUE + b"wo")
        one.close()
        assert _native.receive_frame(other.fileno(), DUE, *target, LONG_S)[0] == -1
        assert content([target])[:2] == b"wo"
