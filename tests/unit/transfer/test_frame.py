"""The frame's bytes: golden, round trip, and what damage does."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transfer.errors import Corrupt, PeerViolation
from transfer.transports import frame
from transfer.transports.frame import MAX_BODY, Header, Kind

HEADERS = st.builds(
    Header,
    kind=st.sampled_from(Kind),
    tag=st.integers(0, 0xFFFF),
    length=st.integers(0, MAX_BODY),
    position=st.integers(0, (1 << 64) - 1),
    sum=st.integers(0, 0xFFFFFFFF),
)


def test_golden_bytes():
    """These bytes are on the wire between versions: change them only with the handshake's version."""
    header = Header(Kind.DATA, tag=0x0102, length=0x00100000, position=0x0A0B0C0D0E0F1011, sum=0xDEADBEEF)

    assert frame.encode(header).hex() == "0200010200100000" + "0a0b0c0d0e0f1011" + "deadbeef" + "6182dac6"


def test_golden_bytes_of_what_goes_aside():
    header = Header(Kind.ASIDE, tag=1, length=2, position=3, sum=4)
    assert frame.encode(header).hex() == "0300000100000002" + "0000000000000003" + "00000004" + "54e8c587"
    assert frame.PLACE.pack(0x0102).hex() == "0000000000000102"


def test_checksum_is_rfc_3720s():
    assert frame.checksum(b"123456789") == 0xE3069283
    assert frame.checksum(b"56789", frame.checksum(b"1234")) == 0xE3069283
    assert frame.checksum(b"") == 0


@given(HEADERS)
def test_round_trip(header: Header):
    assert frame.decode(frame.encode(header)) == header


@given(HEADERS, st.integers(0, frame.HEADER * 8 - 1))
def test_every_flipped_bit_is_noticed(header: Header, bit: int):
    data = bytearray(frame.encode(header))
    data[bit // 8] ^= 1 << bit % 8
    with pytest.raises(Corrupt):
        frame.decode(bytes(data))


@pytest.mark.parametrize("fields", [b"\x04\x00", b"\x01\x01", b"\x00\x00"])
def test_a_whole_header_of_another_protocol_is_refused(fields: bytes):
    data = fields + bytes(18)
    with pytest.raises(PeerViolation, match="same vNPU"):
        frame.decode(data + frame.checksum(data).to_bytes(4, "big"))


def test_a_length_over_the_bound_is_refused_by_both_sides():
    with pytest.raises(ValueError, match="at most"):
        frame.encode(Header(Kind.DATA, 0, MAX_BODY + 1, 0, 0))
    data = b"\x02\x00\x00\x00" + (MAX_BODY + 1).to_bytes(4, "big") + bytes(12)
    with pytest.raises(PeerViolation):
        frame.decode(data + frame.checksum(data).to_bytes(4, "big"))


def test_a_field_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="tag=65536"):
        frame.encode(Header(Kind.DATA, 1 << 16, 0, 0, 0))
