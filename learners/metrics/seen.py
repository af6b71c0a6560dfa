"""How often an id came by so far: a sketch of small counters in bounded memory.

A conservative count-min sketch (Estan and Varghese, 2002; Cormode and Muthukrishnan, 2005) of two rows of bytes that stop at
:data:`MOST`. A count is never too small. With as many distinct ids as a row has counters, two ids in five share both of theirs
and may be counted too high; with a tenth of that, one in a hundred.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from negative_queues.kernels import kernel

MOST = 255
"""Where counters stop."""

Counters = npt.NDArray[np.uint8]
Ids = npt.NDArray[np.int64]

__all__ = ["MOST", "SeenCounts"]


class SeenCounts:
    """Counts of ids, up to :data:`MOST`.

    Args:
        bits: a row has ``2 ** bits`` counters of one byte; there are two rows.
    """

    def __init__(self, bits: int) -> None:
        self.counters = np.zeros((2, 1 << bits), np.uint8)

    def count(self, ids: Ids, offsets: Ids) -> npt.NDArray[np.uint8]:
        """Return how often each id came by before its request, uint8 ``[N]``, and count it; 0 is no id.

        Args:
            ids: ``[N]``.
            offsets: ids of request ``r`` are ``offsets[r]`` to ``offsets[r + 1]``, ``[R + 1]``.
        """
        before = np.zeros(len(ids), np.uint8)
        _count(np.array(ids, np.int64), np.array(offsets, np.int64), self.counters, before)
        return before

    def merge(self, other: SeenCounts) -> None:
        """Add what ``other`` counted; an id that both met is never counted too low.

        Raises:
            ValueError: the two differ in size.
        """
        if other.counters.shape != self.counters.shape:
            raise ValueError(f"counts of sizes {self.counters.shape[1]} and {other.counters.shape[1]} cannot be merged")
        summed = self.counters.astype(np.uint16) + other.counters
        self.counters[:] = np.minimum(summed, MOST)


@kernel
def _place(key: np.int64, row: int, mask: np.uint64) -> np.int64:
    bits = np.uint64(key) + np.uint64(0x9E3779B97F4A7C15) * np.uint64(row + 1)
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.int64((bits ^ (bits >> np.uint64(31))) & mask)


@kernel
def _count(ids: Ids, offsets: Ids, counters: Counters, before: Counters) -> None:
    mask = np.uint64(counters.shape[1] - 1)
    for r in range(len(offsets) - 1):
        for i in range(offsets[r], offsets[r + 1]):
            if ids[i] != 0:
                before[i] = min(counters[0, _place(ids[i], 0, mask)], counters[1, _place(ids[i], 1, mask)])
        for i in range(offsets[r], offsets[r + 1]):
            if ids[i] != 0:
                first, second = _place(ids[i], 0, mask), _place(ids[i], 1, mask)
                least = min(counters[0, first], counters[1, second])
                if least < MOST:
                    if counters[0, first] == least:
                        counters[0, first] += np.uint8(1)
                    if counters[1, second] == least:
                        counters[1, second] += np.uint8(1)
