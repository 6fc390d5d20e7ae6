"""Fingerprint and differences; the manifest, its grid and its digests."""

from __future__ import annotations

import ctypes
import hashlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from native import _native
from tests.helpers.weights import LENGTHS, Rank, extents, identity
from transfer.errors import PeerViolation
from transfer.netloader import wire
from transfer.netloader.identity import Identity, differences
from transfer.netloader.manifest import BLOCK, Extent, Grid, layout_digest, manifest
from transfer.netloader.wire import Ask, Borrow, Code, Lent, Meet, Offer, Placed, Read, Refused, Share, Shared

OTHERS = {
    "model": "another", "dtype": "float16", "quantization": "fp8", "tp_rank": 1, "tp_size": 2, "pp_rank": 1,
    "pp_size": 2, "ep_rank": 1, "ep_size": 2, "vllm": "0.33.0", "kernels": "sgl", "isa": ("avx2",), "layout": "x",
}  # fmt: skip


def test_there_is_another_value_for_every_field():
    assert set(OTHERS) == set(Identity.__struct_fields__)


@pytest.mark.parametrize("field", OTHERS)
def test_every_field_counts_and_is_named(field: str):
    one, other = identity(), identity(**{field: OTHERS[field]})

    [line] = differences(one, other)
    assert line.startswith(f"{field}: ")
    assert line.endswith(")")
    assert one.fingerprint != other.fingerprint
    assert (one.family == other.family) == (field == "layout")


def test_equal_identities():
    assert differences(identity(), identity()) == ()
    assert identity().fingerprint == identity().fingerprint
    assert len(identity().fingerprint) == 32


def test_fields_do_not_run_into_each_other():
    assert identity(model="ab", dtype="c").fingerprint != identity(model="a", dtype="bc").fingerprint


def test_instruction_sets_are_told_by_what_one_side_has_more():
    [line] = differences(identity(), identity(isa=("avx2", "amx")))
    assert "also avx512f here, also amx there" in line


@given(st.lists(st.binary(max_size=300), max_size=8))
def test_folded_sums_are_the_sum_of_the_whole(parts: list[bytes]):
    def crc(data: bytes) -> int:
        held = ctypes.create_string_buffer(data, len(data) + 1)
        return _native.crc32c(ctypes.addressof(held), len(data))

    assert _native.crc32c_fold([(crc(part), len(part)) for part in parts]) == crc(b"".join(parts))


@given(st.lists(st.integers(1, 3 * BLOCK + 1), min_size=1, max_size=6))
def test_the_grid_covers_every_byte_once_in_order(lengths: list[int]):
    grid = Grid(extents(lengths))
    at = dict.fromkeys(range(len(lengths)), 0)
    for number in range(grid.blocks):
        block = grid.block(number)
        assert block.offset == at[block.extent]
        assert 0 < block.length <= BLOCK
        assert number in grid.of_extent(block.extent)
        at[block.extent] += block.length
    assert list(at.values()) == lengths
    for outside in (-1, grid.blocks):
        with pytest.raises(IndexError):
            grid.block(outside)


def test_a_manifests_digests_are_those_of_its_tensors():
    rank = Rank(seed=1)
    whole = rank.manifest()
    whole.check()
    for address, length, digest in zip(rank.addresses, LENGTHS, whole.digests, strict=True):
        assert digest == _native.crc32c(address, length)
    assert whole.digest != Rank(seed=2).manifest().digest
    assert whole.digest == Rank(seed=1).manifest().digest
    assert whole.size == sum(LENGTHS)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"extents": extents((5,))}, "table of extents"),
        ({"sums": b"\0" * 4}, "4 bytes of sums"),
        ({"digests": (1, 2, 3)}, "sums for"),
        ({"digests": (1, 2, 3, 4)}, "fold"),
        ({"sums": bytes(4 * 7)}, "fold"),
    ],
)
def test_a_manifest_that_contradicts_itself(change: dict[str, object], what: str):
    wrong = msgspec.structs.replace(Rank(seed=1).manifest(), **change)
    with pytest.raises(PeerViolation, match=what):
        wrong.check()


def test_the_layout_is_more_than_lengths():
    one = [Extent("a", 64, 4096, "bf16", (4, 8), (8, 1))]
    changes: list[dict[str, object]] = [
        {"name": "b"}, {"offset": 0}, {"dtype": "f16"}, {"shape": (8, 4)}, {"stride": (1, 4)}, {"length": 65}
    ]  # fmt: skip
    others = [[msgspec.structs.replace(one[0], **change)] for change in changes]
    assert len({layout_digest(each) for each in [one, *others]}) == 7


def test_golden_bytes_of_requests():
    """On the wire between versions."""
    assert wire.encode(Read(5, 8)).hex() == "83a474797065a452656164a5666972737405a5636f756e7408"
    assert wire.encode(Refused(Code.LATER)).hex() == (
        "83a474797065a752656675736564a4636f6465a56c61746572a764657461696c7390"
    )
    assert wire.encode(Borrow("n b")).hex() == "82a474797065a6426f72726f77a76d616368696e65a36e2062"
    assert wire.encode(Borrow("n b", together=True)).hex() == (
        "83a474797065a6426f72726f77a76d616368696e65a36e2062a8746f676574686572c3"
    )
    assert wire.encode(Placed((3, 256))).hex() == "82a474797065a6506c61636564a6706c616365739203cd0100"
    assert wire.encode(Meet("gloo")).hex() == "82a474797065a44d656574a76261636b656e64a4676c6f6f"
    assert wire.encode(Share("n b", "n/0")).hex() == (
        "83a474797065a55368617265a76d616368696e65a36e2062a6646576696365a36e2f30"
    )
    assert wire.encode(Shared("c:l")).hex() == "82a474797065a6536861726564a6646967657374a3633a6c"
    assert wire.encode(Lent(7)).hex() == "83a474797065a44c656e74a47669657707a66d6173746572a0"


def test_golden_bytes_of_a_manifest():
    """All that a client believes of the bytes before any has come: identity, extents, sums, digests."""
    [extent] = extents((3,))
    one = Identity(model="m", dtype="d", vllm="v", kernels="k", isa=("i",), layout=layout_digest([extent]))
    assert wire.encode([extent]).hex() == "9196a774656e736f723003ffa575696e7438910390"
    assert one.layout == "e8400903d6e940f6d2229f120b132a3c"
    assert one.fingerprint == "b952328e99d697f2a496678e4d69a140"
    assert hashlib.sha256(wire.encode(Ask(one))).hexdigest()[:32] == "b75afaea22b2befda8d4d299c9ee9da3"
    whole = manifest(one, [extent], [0x01020304])
    assert (whole.sums.hex(), whole.digests) == ("01020304", (0x01020304,))
    assert wire.encode(Offer(whole)).hex() == (
        "82a474797065a54f66666572a86d616e696665737484a86964656e746974798da56d6f64656ca16da56474797065a164"
        "ac7175616e74697a6174696f6ea0a774705f72616e6b00a774705f73697a6501a770705f72616e6b00a770705f73697a"
        "6501a765705f72616e6b00a765705f73697a6501a4766c6c6da176a76b65726e656c73a16ba369736191a169a66c6179"
        "6f7574d9206538343030393033643665393430663664323232396631323062313332613363a7657874656e74739196a7"
        "74656e736f723003ffa575696e7438910390a473756d73c40401020304a76469676573747391ce01020304"
    )


def test_messages_come_back_as_they_were():
    offer = Offer(Rank(seed=1).manifest())
    assert wire.decode_answer(wire.encode(offer)) == offer
    ask = Ask(identity())
    assert wire.decode_request(wire.encode(ask)) == ask


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        wire.encode({"type": "Read", "first": -1, "count": 1}),
        wire.encode({"type": "Read", "first": 0, "count": 65}),
        wire.encode({"type": "Offer"}),
        wire.encode({"type": "Ask", "identity": {"model": "x" * 2000}}),
    ],
)
def test_what_is_no_request(data: bytes):
    with pytest.raises(PeerViolation, match="does not decode"):
        wire.decode_request(data)
    with pytest.raises(PeerViolation, match="does not decode"):
        wire.decode_answer(data)
