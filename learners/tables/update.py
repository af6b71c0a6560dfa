"""Row-wise Adagrad over gathered rows: one accumulator a row instead of one a weight.

``a_r = keep a_r + mean_d(g_rd^2);  w_rd -= rate * g_rd / (sqrt(a_r) + eps)`` (Duchi et al. 2011, with the mean over the row as
in FBGEMM's ``rowwise_adagrad``). ``keep`` = 1 is Adagrad; below 1 a row forgets, per update, how far it has come, and goes on
moving with a stream that changes. The compiled version works in place on the table; the torch one is its twin and serves CUDA.
"""

from __future__ import annotations

import numba
import numpy as np
import numpy.typing as npt
import torch

Floats = npt.NDArray[np.float32]


@numba.njit(cache=True, nogil=True)
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
        row = rows[i]
        if row <= 0:
            continue
        square = np.float32(0.0)
        for d in range(dim):
            square += grad[i, d] * grad[i, d]
        if square == 0.0:
            continue
        accumulated[row] = np.float32(keep) * accumulated[row] + square / np.float32(dim)
        step = np.float32(rate) / (np.sqrt(accumulated[row]) + np.float32(eps))
        for d in range(dim):
            weight[row, d] -= step * grad[i, d]


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
    moved = (rows > 0) & (grad.square().sum(1) > 0)
    rows, grad = rows[moved], grad[moved]
    total = keep * accumulated[rows] + grad.square().mean(1)
    accumulated[rows] = total
    weight[rows] -= rate * grad / (total.sqrt() + eps).unsqueeze(1)
