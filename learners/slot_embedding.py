"""Embeddings of slots (:mod:`learners.sim_extract`): ``bin[bins] + position[positions]``, and back.

Legend: ``C`` targets, ``k`` slots, ``d`` width of a slot's embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from learners.tape import Tape, recording
from negative_queues.kernels import kernel

__all__ = ["embedded"]

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


def embedded(bins: Tensor, positions: Tensor, tables: Sequence[Tensor]) -> Tensor:
    """Return the embeddings of slots side by side, ``[C, k d]``; on the CPU.

    Args:
        bins: int64 ``[C, k]``.
        positions: int64 ``[C, k]``.
        tables: of bins and, where there are any, of positions, ``[., d]`` each.
    """
    tape = recording()
    if tape is None:
        return cast(Tensor, _Embedded.apply(bins, positions, *tables))
    out = _forward(bins, positions, tables)
    tape.then(partial(_back, tape, bins, positions, tables, out), out)
    return out


def _forward(bins: Tensor, positions: Tensor, tables: Sequence[Tensor]) -> Tensor:
    weights = [table.detach().numpy() for table in tables]
    out = torch.empty(len(bins), bins.shape[1] * weights[0].shape[1])
    _gather(bins.numpy(), positions.numpy(), weights[0], weights[-1], len(tables) > 1, out.numpy())
    return out


def _gradients(bins: Tensor, positions: Tensor, sizes: Sequence[torch.Size], gradient: Floats) -> list[Floats]:
    sums = [np.zeros(size, np.float32) for size in sizes]
    _scatter(gradient, bins.numpy(), positions.numpy(), sums[0], sums[-1], len(sums) > 1)
    return sums


def _back(tape: Tape, bins: Tensor, positions: Tensor, tables: Sequence[Tensor], out: Tensor) -> None:
    gradient = tape.take(out)
    if gradient is not None:
        found = _gradients(bins, positions, [table.shape for table in tables], np.ascontiguousarray(gradient))
        for table, of_table in zip(tables, found, strict=True):
            tape.give(table, of_table)


class _Embedded(torch.autograd.Function):
    """``bin[bins] + position[positions]`` without the two gathered tensors, and their gradients in one pass over the slots."""

    @staticmethod
    def forward(ctx: Any, bins: Tensor, positions: Tensor, *tables: Tensor) -> Tensor:
        ctx.save_for_backward(bins, positions)
        ctx.sizes = [table.shape for table in tables]
        return _forward(bins, positions, tables)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        bins, positions = ctx.saved_tensors
        found = _gradients(bins, positions, ctx.sizes, grads[0].contiguous().numpy())
        return None, None, *map(torch.from_numpy, found)


@kernel
def _gather(bins: Ints, positions: Ints, bin_weight: Floats, position_weight: Floats, placed: bool, out: Floats) -> None:
    dim = bin_weight.shape[1]
    for target in range(len(bins)):
        for slot in range(bins.shape[1]):
            for d in range(dim):
                value = bin_weight[bins[target, slot], d]
                out[target, slot * dim + d] = value + position_weight[positions[target, slot], d] if placed else value


@kernel
def _scatter(gradient: Floats, bins: Ints, positions: Ints, bin_sums: Floats, position_sums: Floats, placed: bool) -> None:
    dim = bin_sums.shape[1]
    for target in range(len(bins)):
        for slot in range(bins.shape[1]):
            for d in range(dim):
                bin_sums[bins[target, slot], d] += gradient[target, slot * dim + d]
                if placed:
                    position_sums[positions[target, slot], d] += gradient[target, slot * dim + d]
