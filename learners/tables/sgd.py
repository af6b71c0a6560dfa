"""Plain descent on gathered rows: ``w_rd -= rate * g_rd``. It has no state."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from learners.tables.prefetch import AHEAD, prefetch
from negative_queues.kernels import kernel

Floats = npt.NDArray[np.float32]


@kernel
def sgd(weight: Floats, rows: npt.NDArray[np.int32], grad: Floats, rate: float) -> None:
    """Update ``weight[rows]`` in place from ``grad [U, D]``; ``rows`` are distinct, those below 1 are left alone."""
    for i in range(len(rows)):
        if i + AHEAD < len(rows):
            ahead = max(rows[i + AHEAD], 0)
            prefetch(weight, ahead)
        if rows[i] > 0:
            for d in range(grad.shape[1]):
                weight[rows[i], d] -= np.float32(rate) * grad[i, d]


def sgd_torch(weight: torch.Tensor, rows: torch.Tensor, grad: torch.Tensor, rate: float) -> None:
    """The same in torch, on any device."""
    held = rows > 0
    weight[rows[held]] -= rate * grad[held]
