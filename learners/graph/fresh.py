"""What is new in the sequences of a batch: the entries that its queues take in.

Legend: ``R`` requests.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from learners.batch import Batch
from learners.tables.index import Keys
from negative_queues.kernels import kernel

__all__ = ["fresh_entries"]


def fresh_entries(batch: Batch, sequence: str, fresh: str) -> Keys:
    """Return the ids of each sequence's fresh entries, in order; missing ids are left out."""
    ids, offsets = batch.ragged(sequence)
    new: Keys = np.empty(len(ids), np.int64)
    return new[: _fresh(ids, offsets, batch.values(fresh), new)]


@kernel
def _fresh(ids: Keys, offsets: Keys, fresh: npt.NDArray[np.int32], new: Keys) -> int:
    """Write the last ``fresh [R]`` entries of each sequence to ``new``, without missing ones; return how many there are."""
    n = 0
    for row in range(len(offsets) - 1):
        for at in range(max(offsets[row + 1] - fresh[row], offsets[row]), offsets[row + 1]):
            if ids[at] != 0:
                new[n] = ids[at]
                n += 1
    return n
