"""JSON as a kernel reads it: a position goes through the bytes, and -1 says "not for me".

Accepted is less than JSON: no escapes, no nested unknown values, no long numbers. What is accepted means what
:mod:`msgspec` says it means; the rest is left to it, and so is every error.

Positions are those of ``data``, uint8, which ends with a 0 byte: no function goes past it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from .compiled import inner
from .xxh3 import MAX_BYTES, xxh3_64

Bytes = npt.NDArray[np.uint8]
FAIL: Final = -1
_QUOTE, _BACKSLASH, _COMMA, _COLON = ord('"'), ord("\\"), ord(","), ord(":")
_OPEN, _CLOSE, _MINUS, _DOT, _ZERO, _NINE = ord("{"), ord("}"), ord("-"), ord("."), ord("0"), ord("9")
_NULL: Final = np.frombuffer(b"null", np.uint8)
_TRUE: Final = np.frombuffer(b"true", np.uint8)
_FALSE: Final = np.frombuffer(b"false", np.uint8)
_ONE: Final = np.uint64(1)
_MAX_DIGITS: Final = 15
_MAX_FRACTION: Final = 18
"""Digits after the point; Python and JavaScript write up to 17 that matter, and zeros before them."""
_ONE_MORE: Final = 10**17
"""Below it, a number of so many digits may take one more digit."""
_BITS_52: Final = 1 << 52
_BITS_53: Final = 1 << 53


def words(names: list[str], size: int = 24) -> tuple[Bytes, npt.NDArray[np.int64]]:
    """Return names for :func:`word_of`: their bytes ``[n, size]`` and sizes ``[n]``, -1 for a longer one."""
    rows = np.zeros((len(names), size), np.uint8)
    sizes = np.full(len(names), -1, np.int64)
    for at, name in enumerate(names):
        encoded = name.encode()
        if len(encoded) <= size:
            rows[at, : len(encoded)] = np.frombuffer(encoded, np.uint8)
            sizes[at] = len(encoded)
    return rows, sizes


def joined(values: Sequence[bytes]) -> tuple[Bytes, npt.NDArray[np.int64]]:
    """Return all values one after another with a 0 byte at the end, and where each of them ends."""
    sizes = np.fromiter(map(len, values), np.int64, len(values))
    return np.frombuffer(b"".join([*values, b"\0"]), np.uint8), np.cumsum(sizes)


def namespace_rows(namespaces: list[str]) -> tuple[Bytes, npt.NDArray[np.int64]]:
    """Return scratch ``[n, bytes]`` for :func:`id_of`, each row beginning with its namespace and a 0 byte, and their sizes."""
    return words([f"{namespace}\0" for namespace in namespaces], MAX_BYTES)


@inner
def space(data: Bytes, at: int) -> int:
    """Return the position of the next byte that is not white space."""
    byte = data[np.uint64(at)]
    while byte == 32 or byte == 10 or byte == 13 or byte == 9:
        at += 1
        byte = data[np.uint64(at)]
    return at


@inner
def _utf8_width(data: Bytes, at: int) -> int:
    """Return how many bytes the character takes that begins at ``at`` with a byte above 127, 0 if it is not UTF-8."""
    first, second = data[at], data[at + 1]
    if first < 0xC2 or first > 0xF4 or second & 0xC0 != 0x80:
        return 0
    if first < 0xE0:
        return 2
    if data[at + 2] & 0xC0 != 0x80:
        return 0
    if first < 0xF0:
        return 0 if (first == 0xE0 and second < 0xA0) or (first == 0xED and second > 0x9F) else 3
    if data[at + 3] & 0xC0 != 0x80 or (first == 0xF0 and second < 0x90) or (first == 0xF4 and second > 0x8F):
        return 0
    return 4


@inner
def string_end(data: Bytes, at: int) -> int:
    """Return the position of the quote that ends the string at ``at``."""
    if data[at] != _QUOTE:
        return FAIL
    # Most bytes of a record are looked at here. A position that is not signed spares a test per byte: it cannot be negative.
    i: Any = np.uint64(at + 1)
    byte = data[i]
    while byte != _QUOTE:
        if byte < 32 or byte == _BACKSLASH:
            return FAIL
        if byte < 128:
            i += _ONE
        else:
            width = _utf8_width(data, int(np.int64(i)))
            if not width:
                return FAIL
            i += np.uint64(width)
        byte = data[i]
    return int(np.int64(i))


@inner
def literal_end(data: Bytes, at: int, literal: Bytes) -> int:
    """Return the position after ``literal``."""
    for byte in literal:
        if data[at] != byte:
            return FAIL
        at += 1
    return at


@inner
def null_end(data: Bytes, at: int) -> int:
    """Return the position after a null."""
    return literal_end(data, at, _NULL)


@inner
def integer(data: Bytes, at: int) -> tuple[int, int]:
    """Return the position after an integer that is not negative, and the integer."""
    start = at
    number: Any = 0
    while _ZERO <= data[at] <= _NINE:
        number = number * 10 + np.int64(data[at]) - _ZERO
        at += 1
        if at - start > _MAX_DIGITS:
            return FAIL, 0
    if at == start or (data[start] == _ZERO and at > start + 1):
        return FAIL, 0
    return at, number


@inner
def number_end(data: Bytes, at: int) -> int:
    """Return the position after a number without an exponent."""
    if data[at] == _MINUS:
        at += 1
    at, _ = integer(data, at)
    if at == FAIL or data[at] != _DOT:
        return at
    start = at = at + 1
    while _ZERO <= data[at] <= _NINE:
        at += 1
    return FAIL if at == start or at - start > _MAX_FRACTION else at


@inner
def value_word_of(data: Bytes, at: int) -> tuple[int, int]:
    """Return the position after a number without an exponent, and its :func:`~stream_app.joiner.action_values.value_word`."""
    negative = data[at] == _MINUS
    if negative:
        at += 1
    at, number = integer(data, at)
    if at == FAIL:
        return FAIL, 0
    n_digits: Any = 0
    if data[at] == _DOT:
        start = at = at + 1
        while _ZERO <= data[at] <= _NINE:
            if number >= _ONE_MORE or n_digits == _MAX_FRACTION:
                return FAIL, 0
            number = int(number * 10 + np.int64(data[at]) - _ZERO)
            at += 1
            n_digits = at - start
        if not n_digits:
            return FAIL, 0
    word = _float64_bits(number, n_digits)
    return at, -1 - word if negative and word else word


@inner
def _float64_bits(number: int, n_digits: int) -> int:
    """Return the bits of the float64 nearest to ``number / 10**n_digits``.

    Long division, bit by bit: 53 bits and one more, by which the last is rounded. With 18 digits or fewer, 15 or fewer of them
    before the point, nothing overflows, and nothing lies halfway: that takes a digit per bit behind the point.
    """
    if not number:
        return 0
    divisor: Any = 1
    for _ in range(n_digits):
        divisor *= 10
    quotient, rest = number // divisor, number % divisor
    shift = -1
    while quotient < _BITS_53:
        rest <<= 1
        bit = rest >= divisor
        rest -= divisor if bit else 0
        quotient = quotient << 1 | bit
        shift += 1
    rounded = (quotient + 1) >> 1
    # Bits of the exponent, and of the fraction: one that has become 2**53 carries over.
    return int(((1075 - shift) << 52) + (rounded - _BITS_52))


@inner
def scalar_end(data: Bytes, at: int) -> int:
    """Return the position after a value that is no array and no object."""
    first = data[at]
    if first == _QUOTE:
        end = string_end(data, at)
        return FAIL if end == FAIL else end + 1
    if first == ord("n"):
        return null_end(data, at)
    if first == ord("t"):
        return literal_end(data, at, _TRUE)
    if first == ord("f"):
        return literal_end(data, at, _FALSE)
    return number_end(data, at)


@inner
def number_or_null_end(data: Bytes, at: int) -> int:
    """Return the position after a number or null."""
    return null_end(data, at) if data[at] == ord("n") else number_end(data, at)


@inner
def opened(data: Bytes, at: int, bracket: int) -> int:
    """Return the position of the first element behind an opening bracket; empty ones are not for a kernel."""
    at = space(data, at)
    return space(data, at + 1) if data[at] == bracket else FAIL


@inner
def colon(data: Bytes, end: int) -> int:
    """Return the position of the value whose key's quote is at ``end``."""
    at = space(data, end + 1)
    return space(data, at + 1) if data[at] == _COLON else FAIL


@inner
def following(data: Bytes, at: int, bracket: int) -> tuple[int, bool]:
    """Return the position of the next element, or that after the closing bracket, and whether there is a next one."""
    at = space(data, at)
    if data[at] == _COMMA:
        return space(data, at + 1), True
    return (at + 1, False) if data[at] == bracket else (FAIL, False)


@inner
def flat_object_end(data: Bytes, at: int) -> int:
    """Return the position after an object of scalars."""
    at = opened(data, at, _OPEN)
    if at == FAIL or data[at] == _CLOSE:
        return FAIL if at == FAIL else at + 1
    more = True
    while more:
        end = string_end(data, at)
        if end == FAIL:
            return FAIL
        at = colon(data, end)
        if at != FAIL:
            at = scalar_end(data, at)
        if at == FAIL:
            return FAIL
        at, more = following(data, at, _CLOSE)
    return at


@inner
def word_of(data: Bytes, start: int, end: int, rows: Bytes, sizes: npt.NDArray[np.int64]) -> int:
    """Return the index of the word that stands in ``data[start:end]``, or -1."""
    for index in range(len(sizes)):
        if sizes[index] == end - start:
            same = 0
            while same < end - start and data[np.uint64(start + same)] == rows[np.uint64(index), np.uint64(same)]:
                same += 1
            if same == end - start:
                return index
    return -1


@inner
def id_of(data: Bytes, at: int, scratch: Bytes, prefix: int) -> tuple[int, int]:
    """Return the position after a string or null and its :func:`~stream_app.events.hash_id`, 0 for null or an empty one.

    Args:
        data, at: where it stands.
        scratch: a row of :func:`namespace_rows`.
        prefix: the row's size.
    """
    if data[at] == ord("n"):
        return null_end(data, at), 0
    end = string_end(data, at)
    n = end - at - 1
    if end == FAIL or n + prefix > MAX_BYTES:
        return FAIL, 0
    if not n:
        return end + 1, 0
    return end + 1, hash_of(data, at + 1, end, scratch, prefix)


@inner
def hash_of(data: Bytes, start: int, end: int, scratch: Bytes, prefix: int) -> int:
    """Return the :func:`~stream_app.events.hash_id` of ``data[start:end]``; there must be room for it behind the prefix."""
    to: Any = np.uint64(prefix)
    source: Any = np.uint64(start)
    while source < np.uint64(end):
        scratch[to] = data[source]
        to, source = to + _ONE, source + _ONE
    hashed: Any = np.int64(xxh3_64(scratch, prefix + end - start))
    return int(hashed) if hashed else 1
