"""Target attention: a history weighted by what is being scored.

Legend: ``R`` requests, ``C`` candidates, ``H`` history entries, ``P`` pairs of a candidate and an entry of its request, ``T``
width of both, ``W`` width of the unit's hidden layer.
"""

from __future__ import annotations

from typing import Any, cast

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
        of_query, of_key = self.query(target), self.key(history)
        unit = self.product.weight, self.activation.weight, self.out.weight, self.out.bias
        return cast(Tensor, _Attention.apply(target, history, of_query, of_key, *unit, targets, entries))

    def plain(self, target: Tensor, history: Tensor, targets: Offsets, entries: Offsets) -> Tensor:
        """Return what :meth:`forward` returns, in torch over all pairs."""
        candidate, entry = (torch.from_numpy(side).to(target.device) for side in pairs(targets, entries))
        q, k = target.index_select(0, candidate), history.index_select(0, entry)  # [P, T]
        hidden = self.query(target).index_select(0, candidate) + self.key(history).index_select(0, entry)
        weight = self.out(self.activation(hidden + self.product(q * k)))  # [P, 1]
        return segment_sum(weight * k, candidate, len(target))


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, target: Tensor, history: Tensor, of_query: Tensor, of_key: Tensor, product: Tensor, slope: Tensor,
        out: Tensor, bias: Tensor, targets: Offsets, entries: Offsets,
    ) -> Tensor:  # fmt: skip
        n_pairs = int(np.dot(np.diff(targets), np.diff(entries)))
        both, hidden = torch.empty(n_pairs, target.shape[1]), torch.empty(n_pairs, out.shape[1])
        weight, interest = np.empty(n_pairs, np.float32), torch.zeros_like(target)
        q, k, a = target.detach().numpy(), history.detach().numpy(), slope.detach().numpy()
        _meet(q, k, of_query.detach().numpy(), of_key.detach().numpy(), targets, entries, both.numpy(), hidden.numpy())
        hidden.addmm_(both, product.t())
        _weigh(k, hidden.numpy(), a, out.detach().numpy()[0], float(bias), targets, entries, weight, interest.numpy())
        ctx.pairs = both, hidden, weight
        ctx.rest = q, k, product.detach(), a, out.detach().numpy()[0], targets, entries
        return interest

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, product, slope, out, targets, entries = ctx.rest
        both, hidden, weight = ctx.pairs
        grad, width = grads[0].contiguous().numpy(), len(out)
        of_out, of_slope, pull = torch.zeros(1, width), torch.zeros(1), np.empty(len(weight), np.float32)
        _pull(k, targets, entries, grad, pull)
        _unweigh(hidden.numpy(), slope, out, pull, of_slope.numpy(), of_out[0].numpy())  # hidden is its gradient now
        of_both, of_product = hidden @ product, hidden.t() @ both
        of_target, of_history = torch.zeros(q.shape), torch.zeros(k.shape)
        of_query, of_key = torch.zeros(len(q), width), torch.zeros(len(k), width)
        _part(
            q, k, targets, entries, grad, weight, hidden.numpy(), of_both.numpy(),
            of_target.numpy(), of_history.numpy(), of_query.numpy(), of_key.numpy(),
        )  # fmt: skip
        of_bias = torch.from_numpy(pull.sum(keepdims=True))
        return of_target, of_history, of_query, of_key, of_product, of_slope, of_out, of_bias, None, None


@numba.njit(cache=True, nogil=True)
def _meet(
    q: Floats,
    k: Floats,
    of_query: Floats,
    of_key: Floats,
    targets: Offsets,
    entries: Offsets,
    both: Floats,
    hidden: Floats,
) -> None:
    """Write ``q * k [P, T]`` and the sum of both halves of the hidden layer ``[P, W]`` of every pair."""
    pair = 0
    for r in range(len(targets) - 1):
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
    bias: float,
    targets: Offsets,
    entries: Offsets,
    weight: Floats,
    interest: Floats,
) -> None:
    """Write the ``weight [P]`` of each pair and add it times the entry to the ``interest [C, T]``."""
    pair, leak = 0, slope[0]
    for r in range(len(targets) - 1):
        for c in range(targets[r], targets[r + 1]):
            for h in range(entries[r], entries[r + 1]):
                total = np.float32(bias)
                for w in range(len(out)):
                    value = hidden[pair, w]
                    total += max(value, np.float32(0)) * out[w] + min(value, np.float32(0)) * leak * out[w]
                weight[pair] = total
                for d in range(k.shape[1]):
                    interest[c, d] += total * k[h, d]
                pair += 1


@numba.njit(cache=True, nogil=True, fastmath=LANES)
def _pull(k: Floats, targets: Offsets, entries: Offsets, grad: Floats, pull: Floats) -> None:
    """Write the gradient by each pair's weight, ``[P]``."""
    pair = 0
    for r in range(len(targets) - 1):
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
    for r in range(len(targets) - 1):
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
