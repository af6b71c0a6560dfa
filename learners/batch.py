"""Batch: a block as the arrays that models ask for, each made once.

Legend: ``R`` requests, ``C`` candidates, ``H`` entries of one sequence, ``P`` pairs of a candidate and a history entry.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from learners.device import place
from learners.samples import Ragged, SampleBlock
from learners.tables.distinct import Distinct, distinct
from negative_queues.kernels import kernel

CANDIDATES = "candidate.item"
Offsets = npt.NDArray[np.int64]


class Batch:
    """What a model sees of a block, on a device.

    What it makes stays with the block (:meth:`SampleBlock.once`): models side by side share it, and a thread that reads ahead
    can have it made before the step (:meth:`learners.learner.Learner.prepare`).

    Args:
        block: requests to score or to learn.
        device: where tensors go; ids stay on the CPU, where tables look them up.
    """

    def __init__(self, block: SampleBlock, device: torch.device) -> None:
        self.block = block
        self.device = device
        self.n_requests = len(block)

    def ragged(self, name: str) -> Ragged:
        """Return a list column, values ``[N]`` and offsets ``[R + 1]``."""
        return self.block.ragged(name)

    def ids(self, name: str) -> npt.NDArray[np.int64]:
        """Return the ids or times of a column, flat: ``[N]`` of a list column, ``[R]`` or ``[R * K]`` of a plain one."""
        return self.block.flat(name)

    def values(self, name: str) -> npt.NDArray[Any]:
        """Return the values of a column, flat as by :meth:`ids`; of what type they are."""
        return self.block.flat(name)

    def distinct(self, *names: str) -> Distinct:
        """Return the ids of some columns deduped, a use each: what a table looks up."""
        return self.block.once(("distinct", names), lambda: distinct(*(self.ids(name) for name in names)))

    def floats(self, name: str) -> torch.Tensor:
        """Return a float column as a tensor, ``[N]`` of a list column or ``[R]`` of a plain one."""
        return self._own(("floats", name), lambda: self.values(name).copy())

    def tensor(self, values: npt.NDArray[Any]) -> torch.Tensor:
        """Return an array as a tensor on the device, copied (blocks are read-only)."""
        return place(np.array(values), self.device)

    def offsets(self, name: str) -> torch.Tensor:
        """Return the row bounds of a list column, int64 ``[R + 1]``."""
        return self._own(("offsets", name), lambda: self.ragged(name).offsets.copy())

    def request_of(self, name: str = CANDIDATES) -> torch.Tensor:
        """Return the request of every entry of a list column, int64 ``[N]``."""
        return self._own(("request", name), lambda: rows_of(self.ragged(name).offsets))

    def _own(self, key: Hashable, make: Callable[[], npt.NDArray[Any]]) -> torch.Tensor:
        """Return an array of the block, made and moved to the device once; nobody writes to it."""
        return self.block.once((key, self.device), lambda: place(make(), self.device))

    def prepare(self) -> None:
        """Make what every network asks for."""
        self.request_of()
        self.floats("candidate.label")
        self.floats("candidate.weight")
        self._newest_ts()

    @property
    def n_candidates(self) -> int:
        """Candidates over all requests (``C``)."""
        return len(self.ragged(CANDIDATES).values)

    @property
    def labels(self) -> torch.Tensor:
        """Labels, float32 ``[C]``."""
        return self.floats("candidate.label")

    @property
    def weights(self) -> torch.Tensor:
        """Weights in the loss, float32 ``[C]``."""
        return self.floats("candidate.weight")

    @property
    def newest_ts(self) -> int:
        """Largest request time in the batch, UTC ms."""
        return self._newest_ts()

    def _newest_ts(self) -> int:
        return self.block.once("newest_ts", lambda: int(self.ids("ts").max()) if self.n_requests else 0)


def rows_of(offsets: Offsets) -> Offsets:
    """Return the row of every entry, int64 ``[N]``, of row bounds ``[R + 1]``."""
    rows = np.empty(offsets[-1], np.int64)
    _fill_rows(offsets, rows)
    return rows


@kernel
def _fill_rows(offsets: Offsets, rows: Offsets) -> None:
    for row in range(len(offsets) - 1):
        rows[offsets[row] : offsets[row + 1]] = row


def pairs(left: Offsets, right: Offsets) -> tuple[Offsets, Offsets]:
    """Return the positions of all pairs (l, r) of entries of the same row; ``left`` and ``right`` are offsets ``[R + 1]``."""
    n = int(np.dot(np.diff(left), np.diff(right)))
    first, second = np.empty(n, np.int64), np.empty(n, np.int64)
    _fill_pairs(left, right, first, second)
    return first, second


@kernel
def _fill_pairs(left: Offsets, right: Offsets, first: Offsets, second: Offsets) -> None:
    at = 0
    for row in range(len(left) - 1):
        for i in range(left[row], left[row + 1]):
            for j in range(right[row], right[row + 1]):
                first[at] = i
                second[at] = j
                at += 1
