"""CRC-32C of a whole from those of its parts: crc(A B) = crc(A) * x^(8 |B|) + crc(B) in GF(2)[x]. Pure.

So the sums of the frames, which are checked anyway, give the digest of each tensor without reading it again.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

_POLYNOMIAL = 0x82F63B78  # bit-reversed: the highest bit is the coefficient of x^0
_ONE = 0x80000000
_BYTE = 0x00800000  # x^8


def fold(parts: Iterable[tuple[int, int]]) -> int:
    """The sum of all parts, each given as (sum, length in bytes), in their order."""
    whole = 0
    for part, length in parts:
        whole = _multiply(whole, _shift(length)) ^ part
    return whole


def _multiply(a: int, b: int) -> int:
    product, bit = 0, _ONE
    while bit:
        if a & bit:
            product ^= b
        b = (b >> 1) ^ (_POLYNOMIAL if b & 1 else 0)
        bit >>= 1
    return product


@lru_cache(maxsize=64)
def _shift(length: int) -> int:
    """x^(8 length): what appending that many bytes multiplies a sum by."""
    result, square = _ONE, _BYTE
    while length:
        if length & 1:
            result = _multiply(result, square)
        square = _multiply(square, square)
        length >>= 1
    return result
