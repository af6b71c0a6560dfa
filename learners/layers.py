"""Layers that models share; all of them ragged, none pads.

Legend: ``R`` requests, ``C`` candidates, ``H`` history entries, ``U`` distinct ids of the batch, ``D`` dim, ``P`` pairs of a
candidate and a history entry of its request.
"""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import embedding_bag

from learners.device import compiled
from learners.tables import Gathered
from learners.tape import Tape, recording
from negative_queues.kernels import kernel

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def pool(gathered: Gathered, use: int, offsets: Tensor, mode: str = "mean") -> Tensor:
    """Pool one ragged use of a table per request, ``[R, D]``; an empty row is 0.

    Args:
        gathered: vectors of the batch, ``[U, D]``.
        use: which of its key arrays, ``[H]``.
        offsets: row bounds, int64 ``[R + 1]``.
        mode: ``mean`` or ``sum``.
    """
    places = gathered.places[use]
    if compiled(gathered.weight.device):
        kept = places.numpy(), offsets.numpy(), mode == "mean"
        tape = recording()
        if tape is None and torch.is_grad_enabled():
            return cast(Tensor, _Pool.apply(gathered.weight, *kept))
        out = _pooled(gathered.weight, *kept)
        if tape is not None:
            tape.then(partial(_pool_back, tape, gathered.weight, out, kept), out)
        return out
    return embedding_bag(places, gathered.weight, offsets, mode=mode, include_last_offset=True)


def _pooled(weight: Tensor, places: Ints, offsets: Ints, mean: bool) -> Tensor:
    out = torch.zeros(len(offsets) - 1, weight.shape[1])
    _pool(weight.detach().numpy(), places, offsets, mean, out.numpy())
    return out


class _Pool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, places: Ints, offsets: Ints, mean: bool) -> Tensor:
        ctx.shape, ctx.kept = weight.shape, (places, offsets, mean)
        return _pooled(weight, places, offsets, mean)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        total = torch.zeros(ctx.shape)
        places, offsets, mean = ctx.kept
        _pool_backward(grads[0].contiguous().numpy(), places, offsets, mean, total.numpy())
        return total, None, None, None


def _pool_back(tape: Tape, weight: Tensor, out: Tensor, kept: tuple[Ints, Ints, bool]) -> None:
    grad = tape.take(out)
    if grad is not None:
        _pool_backward(np.ascontiguousarray(grad), *kept, tape.sums(weight))


@kernel
def _pool(weight: Floats, places: Ints, offsets: Ints, mean: bool, out: Floats) -> None:
    for r in range(len(out)):
        first, last = offsets[r], offsets[r + 1]
        for h in range(first, last):
            for d in range(out.shape[1]):
                out[r, d] += weight[places[h], d]
        if mean and last > first:
            for d in range(out.shape[1]):
                out[r, d] /= np.float32(last - first)


@kernel
def _pool_backward(grad: Floats, places: Ints, offsets: Ints, mean: bool, total: Floats) -> None:
    for r in range(len(grad)):
        first, last = offsets[r], offsets[r + 1]
        share = np.float32(1) / np.float32(last - first) if mean and last > first else np.float32(1)
        for h in range(first, last):
            for d in range(grad.shape[1]):
                total[places[h], d] += grad[r, d] * share


def last_entry(gathered: Gathered, use: int, offsets: Tensor) -> Tensor:
    """Return the newest entry of one ragged use of a table per request, ``[R, D]``; an empty row is 0."""
    places = gathered.places[use]
    held = offsets.diff() > 0
    if not len(places):
        return gathered.weight.new_zeros(len(held), gathered.weight.shape[1])
    newest = gathered.weight.index_select(0, places.index_select(0, (offsets[1:] - 1).clamp(min=0)))
    return newest * held.unsqueeze(1)


def segment_sum(values: Tensor, segment: Tensor, n_segments: int) -> Tensor:
    """Add up the rows of ``values [P, D]`` by ``segment [P]``: ``[n_segments, D]``."""
    out = torch.zeros(n_segments, values.shape[1], dtype=values.dtype, device=values.device)
    return out.index_add_(0, segment, values)


class Standardise(nn.Module):
    """Floats -> standardised floats and missing flags, with running moments that only learning moves.

    The moments used for a batch are those before it, in training as in serving, so that a score depends on no other candidate
    (promise 5; no batch statistics). Values are clipped to +-5 deviations.

    Args:
        n: number of float features.
    """

    count: Tensor
    mean: Tensor
    square: Tensor

    def __init__(self, n: int) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(n, dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(n, dtype=torch.float64))
        self.register_buffer("square", torch.zeros(n, dtype=torch.float64))

    def forward(self, values: Tensor) -> Tensor:
        """Return ``[N, 2n]``: standardised values and flags of ``values [N, n]``; what is not finite is missing."""
        if compiled(values.device):
            out = torch.empty(len(values), 2 * values.shape[1])
            _standardise(values.numpy(), self.count.numpy(), self.mean.numpy(), self.square.numpy(), out.numpy())
            return out
        return self.plain(values)

    def plain(self, values: Tensor) -> Tensor:
        """Return what :meth:`forward` returns, in torch."""
        missing = ~values.isfinite()
        deviation = (self.square / self.count.clamp(min=1)).sqrt()
        scaled = (values.double() - self.mean) / torch.where(deviation > 0, deviation, torch.ones_like(deviation))
        scaled = torch.where(missing, torch.zeros_like(scaled), scaled.clamp(-5, 5))
        return torch.cat([scaled.float(), missing.float()], 1)

    def observe(self, values: Tensor) -> None:
        """Add ``values [N, n]`` to the moments (Chan et al. 1979, merged batch by batch)."""
        if compiled(values.device):
            _observe(values.numpy(), self.count.numpy(), self.mean.numpy(), self.square.numpy())
        else:
            self.observe_plain(values)

    @torch.no_grad()
    def observe_plain(self, values: Tensor) -> None:
        """Do what :meth:`observe` does, in torch."""
        known = values.isfinite()
        n = known.sum(0).double()
        x = torch.where(known, values, torch.zeros_like(values)).double()
        mean = x.sum(0) / n.clamp(min=1)
        square = torch.where(known, x - mean, torch.zeros_like(x)).square().sum(0)
        total = self.count + n
        delta = mean - self.mean
        share = n / total.clamp(min=1)
        self.square += square + delta.square() * self.count * share
        self.mean += delta * share
        self.count.copy_(total)


@kernel
def _standardise(values: Floats, count: Doubles, mean: Doubles, square: Doubles, out: Floats) -> None:
    n = values.shape[1]
    for j in range(n):
        deviation = np.sqrt(square[j] / max(count[j], 1.0))
        scale = 1.0 / deviation if deviation > 0 else 1.0
        for i in range(len(values)):
            known = np.isfinite(values[i, j])
            out[i, j] = min(max((values[i, j] - mean[j]) * scale, -5.0), 5.0) if known else 0.0
            out[i, n + j] = 0.0 if known else 1.0


@kernel
def _observe(values: Floats, count: Doubles, mean: Doubles, square: Doubles) -> None:
    for j in range(values.shape[1]):
        n, total, squares = 0, 0.0, 0.0
        for i in range(len(values)):
            if np.isfinite(values[i, j]):
                n += 1
                total += values[i, j]
        own = total / max(n, 1)
        for i in range(len(values)):
            if np.isfinite(values[i, j]):
                squares += (values[i, j] - own) ** 2
        delta, share = own - mean[j], n / max(count[j] + n, 1.0)
        square[j] += squares + delta**2 * count[j] * share
        mean[j] += delta * share
        count[j] += n
