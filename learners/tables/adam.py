"""Lazy Adam over gathered rows: a row's moments and its bias correction move only when the row has a gradient.

``m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2;  w -= rate * (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)`` (Kingma and Ba
2015, Algorithm 1), where ``t`` counts the row's own updates: each row behaves as if Adam was run on it alone. torch's
SparseAdam takes the step of the whole table for ``t``, so that it hardly corrects the first steps of a row that comes late.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from learners.tables.prefetch import AHEAD, prefetch
from negative_queues.kernels import kernel

Floats = npt.NDArray[np.float32]


@kernel
def adam(
    weight: Floats,
    mean: Floats,
    square: Floats,
    updates: Floats,
    rows: npt.NDArray[np.int32],
    grad: Floats,
    rate: float,
    eps: float,
    beta1: float,
    beta2: float,
) -> None:
    """Update ``weight[rows]`` in place from ``grad [U, D]``; ``rows`` are distinct, those below 1 and rows without any gradient
    are left alone."""
    b1, b2 = np.float32(beta1), np.float32(beta2)
    for i in range(len(rows)):
        if i + AHEAD < len(rows):
            ahead = max(rows[i + AHEAD], 0)
            prefetch(weight, ahead)
            prefetch(mean, ahead)
            prefetch(square, ahead)
        row = rows[i]
        if row <= 0 or not grad[i].any():
            continue
        updates[row] += np.float32(1.0)
        step = np.float32(rate / (1.0 - beta1 ** np.float64(updates[row])))
        root = np.float32(1.0 / np.sqrt(1.0 - beta2 ** np.float64(updates[row])))
        for d in range(grad.shape[1]):
            g = grad[i, d]
            mean[row, d] = b1 * mean[row, d] + (np.float32(1.0) - b1) * g
            square[row, d] = b2 * square[row, d] + (np.float32(1.0) - b2) * g * g
            weight[row, d] -= step * mean[row, d] / (np.sqrt(square[row, d]) * root + np.float32(eps))


def adam_torch(
    weight: torch.Tensor,
    mean: torch.Tensor,
    square: torch.Tensor,
    updates: torch.Tensor,
    rows: torch.Tensor,
    grad: torch.Tensor,
    rate: float,
    eps: float,
    beta1: float,
    beta2: float,
) -> None:
    """The same in torch, on any device."""
    moved = (rows > 0) & grad.ne(0).any(1)
    rows, grad = rows[moved].long(), grad[moved]
    updates[rows] += 1
    times = updates[rows].double().unsqueeze(1)
    mean[rows] = beta1 * mean[rows] + (1 - beta1) * grad
    square[rows] = beta2 * square[rows] + (1 - beta2) * grad.square()
    corrected = (square[rows] / (1 - beta2**times)).sqrt() + eps
    weight[rows] -= (rate * (mean[rows] / (1 - beta1**times)) / corrected).float()
