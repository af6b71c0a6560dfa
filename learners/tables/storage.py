"""Arrays that grow without being copied.

Small arrays double. From :data:`COPIED` rows on, an array is asked for at its final length at once: the kernel gives pages to
an array of zeros when they are first written to, so memory follows the rows in use, growing copies nothing, and no moment
holds an array twice. Arrays begin where a cache line does, so that a row of 16 floats is one read of memory and not two.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

COPIED = 1 << 16
"""Up to here growing copies."""
LINE = 64
"""Bytes of a cache line."""
RESERVED = 1 << 24
"""Rows that are reserved (not taken) at once; a longer array doubles again."""


def capacity_for(rows: int, bound: int) -> int:
    """Return how long arrays of a table with ``rows`` rows, of at most ``bound``, are made."""
    wanted = power_of_two(rows)
    if wanted > COPIED:
        wanted = max(wanted, RESERVED)
    return min(wanted, bound)


def zeros(shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Return an array of zeros that begins at a cache line and takes no memory before it is written to."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.zeros(size + LINE, np.uint8)
    start = -memory.ctypes.data % LINE
    return memory[start : start + size].view(dtype).reshape(shape)


def lengthened(array: npt.NDArray[Any], used: int, capacity: int) -> npt.NDArray[Any]:
    """Return ``array`` with its first axis lengthened to ``capacity``; zeros after the first ``used`` rows."""
    longer = zeros((capacity, *array.shape[1:]), array.dtype)
    used = min(used, len(array))
    longer[:used] = array[:used]
    return longer


def power_of_two(n: int) -> int:
    """Return the smallest power of two that is at least ``n`` and 16."""
    return 1 << max(4, (n - 1).bit_length())
