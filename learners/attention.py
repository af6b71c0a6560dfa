"""Target attention: a history weighted by what is being scored.

Legend: ``R`` requests, ``C`` candidates, ``H`` history entries, ``P`` pairs of a candidate and an entry of its request, ``T``
width of both, ``W`` width of the unit's hidden layer.
"""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple, cast

import numba
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from learners.batch import Offsets, pairs
from learners.layers import segment_sum

__all__ = ["TargetAttention"]

Floats = npt.NDArray[np.float32]
LANES = {"reassoc", "contract", "nsz", "arcp"}
PAIRS = 4096
"""Pairs at a time: at the usual widths what they make takes a megabyte."""


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
        return cast(Tensor, _Attention.apply(target, history, *halves, *unit, targets, entries))

    def plain(self, target: Tensor, history: Tensor, targets: Offsets, entries: Offsets) -> Tensor:
        """Return what :meth:`forward` returns, in torch over all pairs."""
        candidate, entry = (torch.from_numpy(side).to(target.device) for side in pairs(targets, entries))
        q, k = target.index_select(0, candidate), history.index_select(0, entry)  # [P, T]
        hidden = self.query(target).index_select(0, candidate) + self.key(history).index_select(0, entry)
        weight = self.out(self.activation(hidden + self.product(q * k)))  # [P, 1]
        return segment_sum(weight * k, candidate, len(target))


class _Attention(torch.autograd.Function):
    """Pairs are taken :data:`PAIRS` at a time, so that what is made per pair stays in cache however long histories are.

    One such run is kept for backward; of several, each is made again there.
    """

    @staticmethod
    def forward(
        ctx: Any, target: Tensor, history: Tensor, query: Tensor, query_bias: Tensor, key: Tensor, product: Tensor,
        slope: Tensor, out: Tensor, bias: Tensor, targets: Offsets, entries: Offsets,
    ) -> Tensor:  # fmt: skip
        target, history = target.contiguous(), history.contiguous()
        of_query, of_key = torch.addmm(query_bias, target, query.t()), torch.mm(history, key.t())
        interest = torch.zeros(target.shape)
        sides = _Sides(target.numpy(), history.numpy(), of_query.numpy(), of_key.numpy(), targets, entries)
        cuts, pairs_before = _cuts(targets, entries, PAIRS)
        weight = np.empty(pairs_before[-1], np.float32)
        made: tuple[Tensor, Tensor] | None = None
        for n, (first, last) in enumerate(itertools.pairwise(cuts.tolist())):
            part = weight[pairs_before[n] : pairs_before[n + 1]]
            made = _pairs(sides, product, first, last, len(part))
            unit = slope.numpy(), out.numpy()[0], bias.numpy()[0]
            _weigh(sides.k, made[1].numpy(), *unit, targets, entries, first, last, part, interest.numpy())
        ctx.sides, ctx.weight, ctx.cuts, ctx.made = sides, weight, (cuts, pairs_before), made if len(cuts) == 2 else None
        ctx.rest = target, history, query, key, product, slope.numpy(), out.numpy()[0]
        return interest

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        target, history, query, key, product, slope, out = ctx.rest
        sides, (cuts, pairs_before) = ctx.sides, ctx.cuts
        grad, width = grads[0].contiguous().numpy(), len(out)
        of_out, of_slope, of_product = torch.zeros(1, width), torch.zeros(1), torch.zeros(product.shape)
        of_target, of_history = torch.zeros(target.shape), torch.zeros(history.shape)
        of_query, of_key = torch.zeros(len(target), width), torch.zeros(len(history), width)
        into = of_target.numpy(), of_history.numpy(), of_query.numpy(), of_key.numpy()
        pull = np.empty(len(ctx.weight), np.float32)
        for n, (first, last) in enumerate(itertools.pairwise(cuts.tolist())):
            part = slice(pairs_before[n], pairs_before[n + 1])
            both, hidden = ctx.made or _pairs(sides, product, first, last, part.stop - part.start)
            _pull(sides.k, sides.targets, sides.entries, first, last, grad, pull[part])
            _unweigh(hidden.numpy(), slope, out, pull[part], of_slope.numpy(), of_out.numpy()[0])  # hidden is its gradient now
            of_product.addmm_(hidden.t(), both)
            of_both = torch.mm(hidden, product)
            _part(
                sides.q, sides.k, sides.targets, sides.entries, first, last, grad, ctx.weight[part], hidden.numpy(),
                of_both.numpy(), *into,
            )  # fmt: skip
        of_halves = torch.mm(of_query.t(), target), of_query.sum(0), torch.mm(of_key.t(), history)
        of_bias = torch.from_numpy(pull.sum(keepdims=True))
        both_sides = of_target.addmm_(of_query, query), of_history.addmm_(of_key, key)
        return *both_sides, *of_halves, of_product, of_slope, of_out, of_bias, None, None


class _Sides(NamedTuple):
    """Both sides of the pairs: vectors ``[C, T]`` and ``[H, T]``, their halves of the hidden layer, whose they are."""

    q: Floats
    k: Floats
    of_query: Floats
    of_key: Floats
    targets: Offsets
    entries: Offsets


def _pairs(sides: _Sides, product: Tensor, first: int, last: int, n: int) -> tuple[Tensor, Tensor]:
    """Return ``q * k [n, T]`` and the hidden layer ``[n, W]`` of the pairs of requests ``first`` to ``last`` (exclusive)."""
    both, hidden = torch.empty(n, product.shape[1]), torch.empty(n, product.shape[0])
    _meet(*sides, first, last, both.numpy(), hidden.numpy())
    return both, hidden.addmm_(both, product.t())


@numba.njit(cache=True, nogil=True)
def _cuts(targets: Offsets, entries: Offsets, most: int) -> tuple[Offsets, Offsets]:
    """Cut the requests into runs of at most ``most`` pairs, or of one request; return the bounds of the runs in requests and in
    pairs."""
    n = len(targets) - 1
    cuts, before = np.zeros(n + 2, np.int64), np.zeros(n + 2, np.int64)
    runs, held, total = 0, 0, 0
    for r in range(n):
        more = (targets[r + 1] - targets[r]) * (entries[r + 1] - entries[r])
        if held and held + more > most:
            runs += 1
            cuts[runs], before[runs] = r, total
            held = 0
        held += more
        total += more
    runs += 1
    cuts[runs], before[runs] = n, total
    return cuts[: runs + 1], before[: runs + 1]


@numba.njit(cache=True, nogil=True)
def _meet(
    q: Floats,
    k: Floats,
    of_query: Floats,
    of_key: Floats,
    targets: Offsets,
    entries: Offsets,
    first: int,
    last: int,
    both: Floats,
    hidden: Floats,
) -> None:
    """Write ``q * k [P, T]`` and the sum of both halves of the hidden layer ``[P, W]`` of every pair of some requests."""
    pair = 0
    for r in range(first, last):
        for c in range(targets[r], targets[r + 1]):
            for h in range(entries[r], entries[r + 1]):
                for d in range(q.shape[1]):
                    both[pair, d] = q[c, d] * k[h, d]
                for w in range(of_key.shape[1]):
                    hidden[pair, w] = of_query[c, w] + of_key[h, w]
                pair += 1


@numba.njit(cache=True, nogil=True, fastmath=LANES)
def _weigh(
    k: Floats,
    hidden: Floats,
    slope: Floats,
    out: Floats,
    bias: np.float32,
    targets: Offsets,
    entries: Offsets,
    first: int,
    last: int,
    weight: Floats,
    interest: Floats,
) -> None:
    """Write the ``weight [P]`` of each pair and add it times the entry to the ``interest [C, T]``."""
    pair, leak = 0, slope[0]
    for r in range(first, last):
        for c in range(targets[r], targets[r + 1]):
            for h in range(entries[r], entries[r + 1]):
                total = bias
                for w in range(len(out)):
                    value = hidden[pair, w]
                    total += max(value, np.float32(0)) * out[w] + min(value, np.float32(0)) * leak * out[w]
                weight[pair] = total
                for d in range(k.shape[1]):
                    interest[c, d] += total * k[h, d]
                pair += 1


@numba.njit(cache=True, nogil=True, fastmath=LANES)
def _pull(k: Floats, targets: Offsets, entries: Offsets, first: int, last: int, grad: Floats, pull: Floats) -> None:
    """Write the gradient by each pair's weight, ``[P]``."""
    pair = 0
    for r in range(first, last):
        for c in range(targets[r], targets[r + 1]):
            for h in range(entries[r], entries[r + 1]):
                total = np.float32(0)
                for d in range(k.shape[1]):
                    total += grad[c, d] * k[h, d]
                pull[pair] = total
                pair += 1


@numba.njit(cache=True, nogil=True, fastmath=LANES)
def _unweigh(hidden: Floats, slope: Floats, out: Floats, pull: Floats, of_slope: Floats, of_out: Floats) -> None:
    """Turn ``hidden [P, W]`` into its gradient; add those of the slope and of the last layer ``[W]``."""
    width, leak = len(out), slope[0]
    active, leaky = np.zeros(width, np.float32), np.zeros(width, np.float32)
    for pair in range(len(pull)):
        for w in range(width):
            active[w] += pull[pair] * max(hidden[pair, w], np.float32(0))
        for w in range(width):
            leaky[w] += pull[pair] * min(hidden[pair, w], np.float32(0))
        for w in range(width):
            hidden[pair, w] = pull[pair] * out[w] * (np.float32(1) if hidden[pair, w] > 0 else leak)
    for w in range(width):
        of_out[w] += active[w] + leak * leaky[w]
        of_slope[0] += leaky[w] * out[w]


@numba.njit(cache=True, nogil=True)
def _part(
    q: Floats,
    k: Floats,
    targets: Offsets,
    entries: Offsets,
    first: int,
    last: int,
    grad: Floats,
    weight: Floats,
    of_hidden: Floats,
    of_both: Floats,
    of_target: Floats,
    of_history: Floats,
    of_query: Floats,
    of_key: Floats,
) -> None:
    """Add what the pairs pass on to both sides, ``[C, T]`` and ``[H, T]``, and to their halves of the hidden layer."""
    pair = 0
    for r in range(first, last):
        for c in range(targets[r], targets[r + 1]):
            for h in range(entries[r], entries[r + 1]):
                for d in range(q.shape[1]):
                    of_target[c, d] += of_both[pair, d] * k[h, d]
                for d in range(q.shape[1]):
                    of_history[h, d] += of_both[pair, d] * q[c, d] + weight[pair] * grad[c, d]
                for w in range(of_key.shape[1]):
                    of_query[c, w] += of_hidden[pair, w]
                for w in range(of_key.shape[1]):
                    of_key[h, w] += of_hidden[pair, w]
                pair += 1
