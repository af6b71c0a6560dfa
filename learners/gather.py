"""Rows of a small matrix by place, with a compiled backward.

``torch.nn.functional.embedding`` and ``index_select`` go back row by row, half a microsecond each: on a batch of a thousand
candidates that costs more than most layers.

Legend: ``U`` rows, ``N`` places, ``D`` width.
"""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from learners.device import compiled
from learners.tape import Tape, recording
from negative_queues.kernels import kernel

__all__ = ["add_at", "add_sides_at", "rows"]

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


def rows(weight: Tensor, places: Tensor, side: int = 1) -> Tensor:
    """Return ``weight[places]``, ``[N, D]``, of ``weight [U, D]`` and ``places`` int64 ``[N]``.

    Args:
        weight: see above.
        places: see above.
        side: so many neighbouring ones are one row of the result, ``[N / side, side * D]``.
    """
    width = side * weight.shape[1]
    if not compiled(weight.device):
        return torch.nn.functional.embedding(places, weight).view(-1, width)
    tape = recording()
    if tape is None and torch.is_grad_enabled():
        return cast(Tensor, _Rows.apply(weight, places)).view(-1, width)
    out = weight.index_select(0, places).view(-1, width)
    if tape is not None:
        tape.then(partial(_back, tape, weight, places, out), out)
    return out


def _back(tape: Tape, weight: Tensor, places: Tensor, out: Tensor) -> None:
    grad = tape.take(out)
    if grad is not None:
        add_sides_at(places.numpy(), grad, tape.sums(weight))


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, places: Tensor) -> Tensor:
        ctx.places, ctx.shape = places.numpy(), weight.shape
        return weight.index_select(0, places)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        total = torch.zeros(ctx.shape)
        add_at(ctx.places, grads[0].contiguous().numpy(), total.numpy())
        return total, None


@kernel
def add_sides_at(places: Ints, grad: Floats, total: Floats) -> None:
    """Do what :func:`add_at` does, where the gradients of some neighbouring uses lie side by side, ``[N / side, side * D]``."""
    dim = total.shape[1]
    side = grad.shape[1] // dim
    for i in range(len(places)):
        at, row, first = places[i], i // side, i % side * dim
        for d in range(dim):
            total[at, d] += grad[row, first + d]


@kernel
def add_at(places: Ints, grad: Floats, total: Floats) -> None:
    """Add the gradient of each use ``[N, D]`` to its place in ``total [U, D]``, in the order of uses."""
    for i in range(len(places)):
        at = places[i]
        for d in range(grad.shape[1]):
            total[at, d] += grad[i, d]
