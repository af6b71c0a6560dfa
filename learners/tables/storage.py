"""Arrays that grow without being copied.

Small arrays double. From :data:`COPIED` rows on, an array is asked for at its final length at once: the kernel gives pages to
an array of zeros when they are first written to, so memory follows the rows in use, growing copies nothing, and no moment
holds an array twice.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

COPIED = 1 << 16
"""Up to here growing copies."""
RESERVED = 1 << 24
"""Rows that are reserved (not taken) at once; a longer array doubles again."""


def capacity_for(rows: int, bound: int) -> int:
    """Return how long arrays of a table with ``rows`` rows, of at most ``bound``, are made."""
    wanted = power_of_two(rows)
    if wanted > COPIED:
        wanted = max(wanted, RESERVED)
    return min(wanted, bound)


def lengthened(array: npt.NDArray[Any], used: int, capacity: int) -> npt.NDArray[Any]:
    """Return ``array`` with its first axis lengthened to ``capacity``; zeros after the first ``used`` rows."""
    longer = np.zeros((capacity, *array.shape[1:]), array.dtype)
    used = min(used, len(array))
    longer[:used] = array[:used]
    return longer


def power_of_two(n: int) -> int:
    """Return the smallest power of two that is at least ``n`` and 16."""
    return 1 << max(4, (n - 1).bit_length())
