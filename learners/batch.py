"""Batch: a block as the arrays that models ask for, each made once.

Legend: ``R`` requests, ``C`` candidates, ``H`` entries of one sequence, ``P`` pairs of a candidate and a history entry.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import torch

from learners.samples import Ragged, SampleBlock

CANDIDATES = "candidate.item"
Offsets = npt.NDArray[np.int64]


class Batch:
    """What a model sees of a block, on a device.

    Args:
        block: requests to score or to learn.
        device: where tensors go; ids stay on the CPU, where tables look them up.
    """

    def __init__(self, block: SampleBlock, device: torch.device) -> None:
        self.block = block
        self.device = device
        self.n_requests = len(block)
        self._ragged: dict[str, Ragged] = {}
        self._values: dict[str, npt.NDArray[Any]] = {}
        self._tensors: dict[str, torch.Tensor] = {}

    def ragged(self, name: str) -> Ragged:
        """Return a list column, values ``[N]`` and offsets ``[R + 1]``."""
        if name not in self._ragged:
            self._ragged[name] = self.block.ragged(name)
        return self._ragged[name]

    def ids(self, name: str) -> npt.NDArray[np.int64]:
        """Return the ids or times of a column, flat: ``[N]`` of a list column, ``[R]`` or ``[R * K]`` of a plain one."""
        return self.values(name)

    def values(self, name: str) -> npt.NDArray[Any]:
        """Return the values of a column, flat as by :meth:`ids`; of what type they are."""
        if name not in self._values:
            flat = self.ragged(name).values if name in self._ragged or self.block.is_ragged(name) else self.block.column(name)
            self._values[name] = flat.reshape(-1)
        return self._values[name]

    def floats(self, name: str) -> torch.Tensor:
        """Return a float column as a tensor, ``[N]`` of a list column or ``[R]`` of a plain one."""
        return self.tensor(self.values(name))

    def tensor(self, values: npt.NDArray[Any]) -> torch.Tensor:
        """Return an array as a tensor on the device, copied (blocks are read-only)."""
        return torch.from_numpy(np.array(values)).to(self.device)

    def offsets(self, name: str) -> torch.Tensor:
        """Return the row bounds of a list column, int64 ``[R + 1]``."""
        key = f"{name}/offsets"
        if key not in self._tensors:
            self._tensors[key] = self.tensor(self.ragged(name).offsets)
        return self._tensors[key]

    def request_of(self, name: str = CANDIDATES) -> torch.Tensor:
        """Return the request of every entry of a list column, int64 ``[N]``."""
        key = f"{name}/request"
        if key not in self._tensors:
            offsets = self.ragged(name).offsets
            self._tensors[key] = self.tensor(np.repeat(np.arange(self.n_requests), np.diff(offsets)))
        return self._tensors[key]

    @cached_property
    def n_candidates(self) -> int:
        """Candidates over all requests (``C``)."""
        return len(self.ragged(CANDIDATES).values)

    @cached_property
    def labels(self) -> torch.Tensor:
        """Labels, float32 ``[C]``."""
        return self.floats("candidate.label")

    @cached_property
    def weights(self) -> torch.Tensor:
        """Weights in the loss, float32 ``[C]``."""
        return self.floats("candidate.weight")

    @cached_property
    def newest_ts(self) -> int:
        """Largest request time in the batch, UTC ms."""
        return int(self.ids("ts").max()) if self.n_requests else 0


def pairs(left: Offsets, right: Offsets) -> tuple[Offsets, Offsets]:
    """Return the positions of all pairs (l, r) of entries of the same row; ``left`` and ``right`` are offsets ``[R + 1]``."""
    n = int(np.dot(np.diff(left), np.diff(right)))
    first, second = np.empty(n, np.int64), np.empty(n, np.int64)
    _fill_pairs(left, right, first, second)
    return first, second


@numba.njit(cache=True, nogil=True)
def _fill_pairs(left: Offsets, right: Offsets, first: Offsets, second: Offsets) -> None:
    at = 0
    for row in range(len(left) - 1):
        for i in range(left[row], left[row + 1]):
            for j in range(right[row], right[row + 1]):
                first[at] = i
                second[at] = j
                at += 1
