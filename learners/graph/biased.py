"""Node vectors with a bias as one more component: ``[v | 1]`` as a first end, ``[v | b]`` as a second end and as a negative.

Their product is ``v . v' + b'``: a scalar per node that takes up how likely it is as anybody's neighbour.

Legend: ``U`` nodes, ``M`` negatives, ``D`` dim.
"""

from __future__ import annotations

from typing import Any, cast

import numba
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from learners.gather import rows

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

__all__ = ["biased", "biased_plain"]


def biased(vectors: Tensor, bias: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return first ends ``[U, D + 1]``, second ends ``[U, D + 1]`` and negatives ``[M, D + 1]``; compiled on the CPU.

    Args:
        vectors: ``[U, D]``.
        bias: ``[U, 1]``.
        drawn: which of the nodes are negatives, int64 ``[M]``.
    """
    if vectors.device.type != "cpu":
        return biased_plain(vectors, bias, drawn)
    return cast(tuple[Tensor, Tensor, Tensor], _Biased.apply(vectors, bias, drawn))


def biased_plain(vectors: Tensor, bias: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return what :func:`biased` returns, in plain torch."""
    second = torch.cat([vectors, bias], 1)
    return torch.cat([vectors, torch.ones_like(bias)], 1), second, rows(second, drawn)


class _Biased(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, vectors: Tensor, bias: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        ctx.drawn, wide = drawn.numpy(), vectors.shape[1] + 1
        first, second, negative = (torch.empty(n, wide) for n in (len(vectors), len(vectors), len(drawn)))
        _forward(vectors.detach().numpy(), bias.detach().numpy(), ctx.drawn, first.numpy(), second.numpy(), negative.numpy())
        return first, second, negative

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        first, second, negative = (grad.contiguous().numpy() for grad in grads)
        vectors, bias = torch.empty(len(first), first.shape[1] - 1), torch.empty(len(first), 1)
        _backward(first, second, negative, ctx.drawn, vectors.numpy(), bias.numpy())
        return vectors, bias, None


@numba.njit(cache=True, nogil=True)
def _forward(vectors: Floats, bias: Floats, drawn: Ints, first: Floats, second: Floats, negative: Floats) -> None:
    dim = vectors.shape[1]
    for u in range(len(vectors)):
        for d in range(dim):
            first[u, d] = second[u, d] = vectors[u, d]
        first[u, dim], second[u, dim] = np.float32(1), bias[u, 0]
    for m in range(len(drawn)):
        for d in range(dim + 1):
            negative[m, d] = second[drawn[m], d]


@numba.njit(cache=True, nogil=True)
def _backward(first: Floats, second: Floats, negative: Floats, drawn: Ints, vectors: Floats, bias: Floats) -> None:
    dim = vectors.shape[1]
    for u in range(len(vectors)):
        for d in range(dim):
            vectors[u, d] = first[u, d] + second[u, d]
        bias[u, 0] = second[u, dim]
    for m in range(len(drawn)):
        for d in range(dim):
            vectors[drawn[m], d] += negative[m, d]
        bias[drawn[m], 0] += negative[m, dim]
