"""Row-wise Adagrad over gathered rows: one accumulator a row instead of one a weight.

``a_r = keep a_r + mean_d(g_rd^2);  w_rd -= rate * g_rd / (sqrt(a_r) + eps)`` (Duchi et al. 2011, with the mean over the row as
in FBGEMM's ``rowwise_adagrad``). ``keep`` = 1 is Adagrad; below 1 a row forgets, per update, how far it has come, and goes on
moving with a stream that changes. The compiled version works in place on the table; the torch one is its twin and serves CUDA.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from learners.tables.prefetch import AHEAD, prefetch
from negative_queues.kernels import kernel

Floats = npt.NDArray[np.float32]


@kernel
def rowwise_adagrad(
    weight: Floats,
    accumulated: Floats,
    rows: npt.NDArray[np.int32],
    grad: Floats,
    rate: float,
    eps: float,
    keep: float,
) -> None:
    """Update ``weight[rows]`` in place from ``grad [U, D]``; ``rows`` are distinct, those below 1 (missing, not admitted) are
    left alone."""
    dim = grad.shape[1]
    for i in range(len(rows)):
        if i + AHEAD < len(rows):
            ahead = max(rows[i + AHEAD], 0)
            prefetch(weight, ahead)
            prefetch(accumulated, ahead)
        row, square = rows[i], _square(grad[i])
        if row <= 0 or square == 0.0:
            continue
        accumulated[row] = np.float32(keep) * accumulated[row] + square / np.float32(dim)
        step = np.float32(rate) / (np.sqrt(accumulated[row]) + np.float32(eps))
        for d in range(dim):
            weight[row, d] -= step * grad[i, d]


@kernel(inline="always")
def _square(values: Floats) -> np.float32:
    """Return the sum of squares, added up in four parts that do not wait for each other; the same on every machine."""
    a = b = c = d = np.float32(0.0)
    whole = len(values) // 4 * 4
    for i in range(0, whole, 4):
        a += values[i] * values[i]
        b += values[i + 1] * values[i + 1]
        c += values[i + 2] * values[i + 2]
        d += values[i + 3] * values[i + 3]
    for i in range(whole, len(values)):
        a += values[i] * values[i]
    return (a + b) + (c + d)


def rowwise_adagrad_torch(
    weight: torch.Tensor,
    accumulated: torch.Tensor,
    rows: torch.Tensor,
    grad: torch.Tensor,
    rate: float,
    eps: float,
    keep: float,
) -> None:
    """The same in torch, on any device."""
    moved = (rows > 0) & (grad.square().sum(1) != 0)  # NaN moves a row, so that the guard of a run sees it
    rows, grad = rows[moved], grad[moved]
    total = keep * accumulated[rows] + grad.square().mean(1)
    accumulated[rows] = total
    weight[rows] -= rate * grad / (total.sqrt() + eps).unsqueeze(1)
