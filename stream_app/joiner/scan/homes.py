"""Partitions of keys as a kernel: :func:`stream_app.events.partition_of` of a read at once, without an object per key.

Source: murmur2 as Kafka's clients have it (org.apache.kafka.common.utils.Utils.murmur2).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from stream_app.joiner.core.layout import Ints

from .compiled import inner, kernel
from .values import Bytes, joined

_U: Final = np.uint64
_MASK: Final = _U(0xFFFFFFFF)
_POSITIVE: Final = _U(0x7FFFFFFF)
_M: Final = _U(0x5BD1E995)
_SEED: Final = _U(0x9747B28C)


def homes(keys: Sequence[bytes], n_partitions: int) -> Ints:
    """Return the partition that each key belongs to ``[N]``, -1 for an empty one."""
    found = np.empty(len(keys), np.int64)
    _homes(*joined(keys), n_partitions, found)
    return found


@kernel
def _homes(data: Bytes, ends: Ints, n_partitions: int, found: Ints) -> None:
    start = 0
    for i in range(len(ends)):
        end = ends[i]
        hashed: Any = _murmur2(data, start, end) & _POSITIVE
        found[i] = np.int64(hashed) % n_partitions if end > start else -1
        start = end


@inner
def _murmur2(data: Bytes, start: int, end: int) -> np.uint64:
    """Return :func:`stream_app.events.murmur2` of ``data[start:end]``; 64 bits hold each product."""
    n = end - start
    h: Any = _SEED ^ _U(n)
    at: Any = _U(start)
    for _ in range(n >> 2):
        k: Any = _U(data[at]) | _U(data[at + _U(1)]) << _U(8) | _U(data[at + _U(2)]) << _U(16) | _U(data[at + _U(3)]) << _U(24)
        k = k * _M & _MASK
        k = (k ^ k >> _U(24)) * _M & _MASK
        h = h * _M & _MASK ^ k
        at += _U(4)
    if n & 3:
        tail: Any = _U(0)
        for place in range(n & 3):
            tail |= _U(data[at + _U(place)]) << _U(8 * place)
        h = (h ^ tail) * _M & _MASK
    h = (h ^ h >> _U(13)) * _M & _MASK
    return h ^ h >> _U(15)  # type: ignore[no-any-return]
