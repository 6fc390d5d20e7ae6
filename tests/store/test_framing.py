"""Frames out of bytes, batches out of frames."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.store.transport import Refused, ReplyLost
from coordinator.store.watch import Framer, parse_frame
from coordinator.store.wire import Event, Kv, batches, decode_key, encode_key, prefix_end


@given(st.lists(st.binary(min_size=1).filter(lambda line: b"\n" not in line)), st.data())
def test_lines_come_out_whole_however_they_are_cut(lines: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(line + b"\n" for line in lines)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)))))
    framer = Framer()
    seen = [
        line
        for begin, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)
        for line in framer.feed(stream[begin:end])
    ]
    assert seen == lines


def test_half_a_line_is_kept() -> None:
    framer = Framer()
    assert framer.feed(b"a\nb\nhal") == [b"a", b"b"]
    assert framer.feed(b"") == []
    assert framer.feed(b"f") == []
    assert framer.feed(b"\n\nc\n") == [b"half", b"c"]


def test_a_frame_s_errors_are_told_apart() -> None:
    with pytest.raises(Refused) as refused:
        parse_frame(b'{"error":{"grpc_code":14,"http_code":503,"message":"transport is closing"}}')
    assert refused.value.code == 14
    with pytest.raises(ReplyLost):
        parse_frame(b"<html>")
    result = parse_frame(
        b'{"result":{"header":{"revision":"12"},"events":[{"kv":{"key":"YQ==","mod_revision":"12"}}]}}'
    )
    assert (result.header.revision, result.events) == (12, (Event(Kv(key=b"a", mod_revision=12)),))


def test_batches_are_whole_revisions_from_the_wanted_one_on() -> None:
    events = [Event(Kv(key=name, mod_revision=n), kind) for name, n, kind in (
        (b"a", 5, "PUT"), (b"b", 6, "PUT"), (b"c", 6, "DELETE"), (b"d", 8, "PUT")
    )]  # fmt: skip
    seen = [(batch.revision, [(c.key, c.kv is None) for c in batch.changes]) for batch in batches(events, 6)]
    assert seen == [(6, [("b", False), ("c", True)]), (8, [("d", False)])]


@pytest.mark.parametrize(
    ("prefix", "end"), [(b"", b"\0"), (b"a", b"b"), (b"/x/", b"/x0"), (b"a\xff\xff", b"b"), (b"\xff", b"\0")]
)
def test_the_end_of_a_prefix(prefix: bytes, end: bytes) -> None:
    assert prefix_end(prefix) == end


@given(st.binary())
def test_any_key_survives_the_round_trip(key: bytes) -> None:
    assert encode_key(decode_key(key)) == key
