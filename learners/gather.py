"""Rows of a small matrix by place, with a compiled backward.

``torch.nn.functional.embedding`` and ``index_select`` go back row by row, half a microsecond each: on a batch of a thousand
candidates that costs more than most layers.

Legend: ``U`` rows, ``N`` places, ``D`` width.
"""

from __future__ import annotations

from typing import Any, cast

import numba
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["rows"]

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


def rows(weight: Tensor, places: Tensor) -> Tensor:
    """Return ``weight[places]``, ``[N, D]``, of ``weight [U, D]`` and ``places`` int64 ``[N]``."""
    if weight.device.type != "cpu":
        return torch.nn.functional.embedding(places, weight)
    return cast(Tensor, _Rows.apply(weight, places))


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, places: Tensor) -> Tensor:
        ctx.places, ctx.shape = places.numpy(), weight.shape
        return weight.index_select(0, places)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        out = torch.zeros(ctx.shape)
        _add_rows(grads[0].numpy(), ctx.places, out.numpy())
        return out, None


@numba.njit(cache=True, nogil=True)
def _add_rows(grad: npt.NDArray[np.float32], places: Ints, out: Floats) -> None:
    """Add each row of ``grad [N, D]`` to its place in ``out [U, D]``, in their order."""
    for n in range(len(places)):
        for d in range(grad.shape[1]):
            out[places[n], d] += grad[n, d]
