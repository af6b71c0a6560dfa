"""A target against the history of its request: mean and newest entry, and the target's product with each, in one pass.

Legend: ``R`` requests, ``C`` candidates, ``H`` history entries, ``U`` distinct ids of the batch, ``D`` dim, ``n`` 1, or 2 with
the newest entry.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from learners.batch import CANDIDATES, Batch
from learners.device import compiled
from learners.layers import last_entry, pool
from learners.tables import Gathered
from learners.tape import Tape, recording
from negative_queues.kernels import kernel

__all__ = ["Crossed", "crossed", "crossed_plain"]

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


class Crossed(NamedTuple):
    """Mean of the history, with or without its newest entry beside it; 0 where the history is empty."""

    request: Tensor
    """``[R, n D]``."""
    candidate: Tensor
    """The target's product with each, ``[C, n D]``."""


def crossed(batch: Batch, gathered: Gathered, use: int, sequence: str, *, newest: bool = False) -> Crossed:
    """Return a history's summaries and their products with the targets: compiled on the CPU, else :func:`crossed_plain`.

    Args:
        batch: whose candidates are use 0 of the gather.
        gathered: vectors of the batch, ``[U, D]``.
        use: of the history.
        sequence: the column that says which entries are whose.
        newest: whether the newest entry is a summary beside the mean.
    """
    if not compiled(gathered.weight.device):
        return crossed_plain(batch, gathered, use, sequence, newest=newest)
    places = gathered.places[0].numpy(), gathered.places[use].numpy()
    offsets = batch.ragged(CANDIDATES).offsets, batch.ragged(sequence).offsets
    tape = recording()
    if tape is None and torch.is_grad_enabled():
        return Crossed(*cast(tuple[Tensor, Tensor], _Crossed.apply(gathered.weight, *places, *offsets, newest)))
    out, kept = _computed(gathered.weight, *places, *offsets, newest)
    if tape is not None:
        tape.then(partial(_back, tape, gathered.weight, out, kept), *out)
    return Crossed(*out)


def crossed_plain(batch: Batch, gathered: Gathered, use: int, sequence: str, *, newest: bool = False) -> Crossed:
    """Return what :func:`crossed` returns, operation by operation in torch."""
    offsets = batch.offsets(sequence)
    parts = [pool(gathered, use, offsets)] + ([last_entry(gathered, use, offsets)] if newest else [])
    target = gathered.of(0)
    products = [target * part.index_select(0, batch.request_of()) for part in parts]
    return Crossed(torch.cat(parts, 1), torch.cat(products, 1))


class _Kept(NamedTuple):
    """What the way back needs."""

    weight: Floats
    now: Ints
    past: Ints
    now_offsets: Ints
    past_offsets: Ints
    request: Floats


def _computed(
    weight: Tensor, now: Ints, past: Ints, now_offsets: Ints, past_offsets: Ints, newest: bool
) -> tuple[tuple[Tensor, Tensor], _Kept]:
    width = weight.shape[1] * (1 + newest)
    request, candidate = torch.zeros(len(now_offsets) - 1, width), torch.empty(len(now), width)
    kept = _Kept(weight.detach().numpy(), now, past, now_offsets, past_offsets, request.numpy())
    _forward(kept, candidate.numpy())
    return (request, candidate), kept


def _back(tape: Tape, weight: Tensor, out: tuple[Tensor, Tensor], kept: _Kept) -> None:
    given = [tape.take(value) for value in out]
    if any(grad is not None for grad in given):
        of_request, of_candidate = (
            np.zeros(value.shape, np.float32) if grad is None else np.ascontiguousarray(grad)
            for grad, value in zip(given, out, strict=True)
        )
        _backward(kept, of_request, of_candidate, tape.sums(weight))


class _Crossed(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, now: Ints, past: Ints, now_offsets: Ints, past_offsets: Ints, newest: bool
    ) -> tuple[Tensor, Tensor]:
        out, ctx.kept = _computed(weight, now, past, now_offsets, past_offsets, newest)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        out = torch.zeros(ctx.kept.weight.shape)
        of_request, of_candidate = (grad.contiguous().numpy() for grad in grads)
        _backward(ctx.kept, of_request, of_candidate, out.numpy())
        return out, None, None, None, None, None


@kernel
def _forward(kept: _Kept, candidate: Floats) -> None:
    weight, now, past, now_offsets, past_offsets, request = kept
    dim, width = weight.shape[1], request.shape[1]
    for r in range(len(now_offsets) - 1):
        first, last = past_offsets[r], past_offsets[r + 1]
        if last > first:
            for h in range(first, last):
                for d in range(dim):
                    request[r, d] += weight[past[h], d]
            for d in range(dim):
                request[r, d] /= np.float32(last - first)
            for d in range(width - dim):
                request[r, dim + d] = weight[past[last - 1], d]
        for c in range(now_offsets[r], now_offsets[r + 1]):
            for d in range(dim):
                candidate[c, d] = weight[now[c], d] * request[r, d]
            for d in range(width - dim):
                candidate[c, dim + d] = weight[now[c], d] * request[r, dim + d]


@kernel
def _backward(kept: _Kept, of_request: Floats, of_candidate: Floats, out: Floats) -> None:
    weight, now, past, now_offsets, past_offsets, request = kept
    dim, width = weight.shape[1], request.shape[1]
    total = np.empty(width, np.float32)
    for r in range(len(now_offsets) - 1):
        total[:] = of_request[r]
        for c in range(now_offsets[r], now_offsets[r + 1]):
            row = now[c]
            for d in range(dim):
                total[d] += of_candidate[c, d] * weight[row, d]
                out[row, d] += of_candidate[c, d] * request[r, d]
            for d in range(width - dim):
                total[dim + d] += of_candidate[c, dim + d] * weight[row, d]
                out[row, d] += of_candidate[c, dim + d] * request[r, dim + d]
        first, last = past_offsets[r], past_offsets[r + 1]
        if last > first:
            for d in range(dim):
                total[d] /= np.float32(last - first)
            for h in range(first, last):
                for d in range(dim):
                    out[past[h], d] += total[d]
            for d in range(width - dim):
                out[past[last - 1], d] += total[dim + d]
