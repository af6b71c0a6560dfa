"""Target attention: a history weighted by what is being scored.

Legend: ``R`` requests, ``C`` candidates, ``H`` history entries, ``P`` pairs of a candidate and an entry of its request, ``T``
width of both, ``W`` width of the unit's hidden layer.
"""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from learners import attention_ranges
from learners.attention_ranges import Sides, Unit
from learners.batch import Offsets, pairs
from learners.blas import SGEMM
from learners.layers import segment_sum
from learners.threads import team

__all__ = ["TargetAttention"]

LEAST = 1024
"""Pairs of a thread, at least."""


class TargetAttention(nn.Module):
    """DIN's local activation unit (Zhou et al. 2018, section 4.3): sum over the history of ``a(k, q) k``.

    ``a`` is an MLP of ``[q, k, q - k, q * k]`` without softmax, so that the sum keeps the strength of the interest. Its first
    layer is taken apart: ``W_q q`` is computed per candidate, ``W_k k`` per history entry, only ``W_p (q * k)`` per pair.

    Args:
        dim: of targets and history entries.
        hidden: width of the unit's hidden layer.
    """

    def __init__(self, dim: int, hidden: int = 36) -> None:
        super().__init__()
        self.query = nn.Linear(dim, hidden)
        self.key = nn.Linear(dim, hidden, bias=False)
        self.product = nn.Linear(dim, hidden, bias=False)
        self.activation = nn.PReLU()
        self.out = nn.Linear(hidden, 1)

    def forward(self, target: Tensor, history: Tensor, targets: Offsets, entries: Offsets) -> Tensor:
        """Return the interest per candidate ``[C, T]``, 0 where the history is empty: compiled on the CPU, else :meth:`plain`.

        Args:
            target: ``[C, T]``.
            history: ``[H, T]``.
            targets: the candidates of request ``r``, offsets ``[R + 1]``.
            entries: its history entries, likewise.
        """
        if target.device.type != "cpu":
            return self.plain(target, history, targets, entries)
        halves = self.query.weight, self.query.bias, self.key.weight
        unit = self.product.weight, self.activation.weight, self.out.weight, self.out.bias
        return cast(Tensor, _Attention.apply(targets, entries, target, history, *halves, *unit))

    def plain(self, target: Tensor, history: Tensor, targets: Offsets, entries: Offsets) -> Tensor:
        """Return what :meth:`forward` returns, in torch over all pairs."""
        candidate, entry = (torch.from_numpy(side).to(target.device) for side in pairs(targets, entries))
        q, k = target.index_select(0, candidate), history.index_select(0, entry)  # [P, T]
        hidden = self.query(target).index_select(0, candidate) + self.key(history).index_select(0, entry)
        weight = self.out(self.activation(hidden + self.product(q * k)))  # [P, 1]
        return segment_sum(weight * k, candidate, len(target))


class _Attention(torch.autograd.Function):
    """A range of requests goes forward in one compiled call, and back in another one; ranges as many at once as there are
    threads. Weights' gradients are summed within a range, then over the ranges in their order."""

    @staticmethod
    def forward(ctx: Any, targets: Offsets, entries: Offsets, target: Tensor, history: Tensor, *unit: Tensor) -> Tensor:
        ctx.sides = sides = Sides(target.contiguous().numpy(), history.contiguous().numpy(), targets, entries)
        ctx.unit = weights = Unit(*(tensor.contiguous().numpy() for tensor in unit))
        interest = torch.empty(target.shape)
        with team() as threads:
            ctx.ranges = attention_ranges.balanced(targets, entries, threads.n, LEAST)
            ctx.weight = np.empty(ctx.ranges[-1, 1], np.float32)
            work = SGEMM, sides, weights, ctx.weight, interest.numpy()
            threads.run([partial(attention_ranges.forward, *work, *bounds) for bounds in _bounds(ctx.ranges)])
        return interest

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        sides, unit, grad = ctx.sides, ctx.unit, grads[0].contiguous().numpy()
        of_target, of_history = np.empty_like(sides.q), np.empty_like(sides.k)
        with team() as threads:
            sums = [Unit(*map(np.zeros_like, unit)) for _ in ctx.ranges[1:]]
            work = SGEMM, sides, unit, ctx.weight, grad, of_target, of_history
            threads.run(
                [
                    partial(attention_ranges.backward, *work, own, *bounds)
                    for own, bounds in zip(sums, _bounds(ctx.ranges), strict=True)
                ]
            )
        for total, *others in zip(*sums, strict=True):
            for more in others:
                total += more
        return None, None, *(torch.from_numpy(array) for array in (of_target, of_history, *sums[0]))


def _bounds(ranges: npt.NDArray[np.int64]) -> list[tuple[int, int, int]]:
    """Return first request, last (exclusive) and first pair of each range."""
    rows = ranges.tolist()
    return [(first, last, pair) for (first, pair), (last, _) in itertools.pairwise(rows)]
