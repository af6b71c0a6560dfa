"""xxh3_64 of short inputs as a kernel: the ids of a page are hashed where they stand, without an object each.

Source: XXH3_64bits of xxHash 0.8 (github.com/Cyan4973/xxHash, doc/xxhash_spec.md), seed 0, default secret, up to 128 bytes.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from .compiled import inner, kernel

MAX_BYTES: Final = 128
_SECRET_HEX: Final = (
    "b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671f"
    "cb79e64eccc0e578825ad07dccff7221b8084674f743248ee03590e6813a264c"
    "3c2852bb91c300cb88d0658b1b532ea371644897a20df94e3819ef46a9deacd8"
    "a8fa763fe39c343ff9dcbbc7c70b4f1d8a51e04bcdb45931c89f7ec9d9787364"
)
_SECRET: Final = np.frombuffer(bytes.fromhex(_SECRET_HEX), np.uint8)
_U: Final = np.uint64
_LOW: Final = _U(0xFFFFFFFF)
_PRIME64_1: Final = _U(0x9E3779B185EBCA87)
_PRIME64_2: Final = _U(0xC2B2AE3D27D4EB4F)
_PRIME64_3: Final = _U(0x165667B19E3779F9)
_PRIME_MX1: Final = _U(0x165667919E3779F9)
_PRIME_MX2: Final = _U(0x9FB21C651E98DF25)


@inner
def _read32(data: npt.NDArray[np.uint8], at: int) -> np.uint64:
    i = _U(at)  # Not signed: an index that may be negative costs a test per byte, and keeps four loads from becoming one.
    return _U(data[i]) | _U(data[i + _U(1)]) << _U(8) | _U(data[i + _U(2)]) << _U(16) | _U(data[i + _U(3)]) << _U(24)


@inner
def _read64(data: npt.NDArray[np.uint8], at: int) -> np.uint64:
    i = _U(at)
    low = _U(data[i]) | _U(data[i + _U(1)]) << _U(8) | _U(data[i + _U(2)]) << _U(16) | _U(data[i + _U(3)]) << _U(24)
    i += _U(4)
    high = _U(data[i]) | _U(data[i + _U(1)]) << _U(8) | _U(data[i + _U(2)]) << _U(16) | _U(data[i + _U(3)]) << _U(24)
    return low | high << _U(32)


@inner
def _swapped(x: np.uint64) -> np.uint64:
    x = (x & _U(0x00FF00FF00FF00FF)) << _U(8) | (x >> _U(8)) & _U(0x00FF00FF00FF00FF)
    x = (x & _U(0x0000FFFF0000FFFF)) << _U(16) | (x >> _U(16)) & _U(0x0000FFFF0000FFFF)
    return x << _U(32) | x >> _U(32)


@inner
def _folded_product(a: np.uint64, b: np.uint64) -> np.uint64:
    """Return the low half xor the high half of the 128-bit product."""
    a_low, a_high, b_low, b_high = a & _LOW, a >> _U(32), b & _LOW, b >> _U(32)
    low, middle, other, high = a_low * b_low, a_high * b_low, a_low * b_high, a_high * b_high
    carry = (low >> _U(32)) + (middle & _LOW) + other
    return (carry << _U(32) | low & _LOW) ^ ((middle >> _U(32)) + (carry >> _U(32)) + high)


@inner
def _avalanche(h: np.uint64) -> np.uint64:
    h = (h ^ h >> _U(37)) * _PRIME_MX1
    return h ^ h >> _U(32)


@inner
def _mixed(data: npt.NDArray[np.uint8], at: int, secret: int) -> np.uint64:
    """Mix 16 bytes."""
    return _folded_product(_read64(data, at) ^ _read64(_SECRET, secret), _read64(data, at + 8) ^ _read64(_SECRET, secret + 8))


@inner
def _up_to_16(data: npt.NDArray[np.uint8], n: int) -> np.uint64:
    size = _U(n)
    if n > 8:
        low = _read64(data, 0) ^ _read64(_SECRET, 24) ^ _read64(_SECRET, 32)
        high = _read64(data, n - 8) ^ _read64(_SECRET, 40) ^ _read64(_SECRET, 48)
        return _avalanche(size + _swapped(low) + high + _folded_product(low, high))
    if n > 3:
        h = (_read32(data, n - 4) + (_read32(data, 0) << _U(32))) ^ _read64(_SECRET, 8) ^ _read64(_SECRET, 16)
        h ^= (h << _U(49) | h >> _U(15)) ^ (h << _U(24) | h >> _U(40))
        h *= _PRIME_MX2
        h ^= (h >> _U(35)) + size
        h *= _PRIME_MX2
        return h ^ h >> _U(28)
    h = _U(data[0]) << _U(16) | _U(data[n >> 1]) << _U(24) | _U(data[n - 1]) | size << _U(8)
    h ^= _read32(_SECRET, 0) ^ _read32(_SECRET, 4)
    h = (h ^ h >> _U(33)) * _PRIME64_2
    h = (h ^ h >> _U(29)) * _PRIME64_3
    return h ^ h >> _U(32)


@kernel
def xxh3_64(data: npt.NDArray[np.uint8], n: int) -> np.uint64:
    """Return the hash of the first ``n`` bytes, 1 to :data:`MAX_BYTES`."""
    if n <= 16:
        return _up_to_16(data, n)
    h = _U(n) * _PRIME64_1
    for pair in range((n - 1) // 32, -1, -1):
        h += _mixed(data, 16 * pair, 32 * pair) + _mixed(data, n - 16 - 16 * pair, 32 * pair + 16)
    return _avalanche(h)
