"""Target attention: a history weighted by what is being scored.

Legend: ``R`` requests, ``C`` candidates, ``H`` history entries, ``P`` pairs of a candidate and an entry of its request, ``U``
rows of a matrix, ``D`` their width, ``T`` width of targets and entries, ``W`` width of the unit's hidden layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from learners import attention_kernels
from learners.attention_passes import Pass
from learners.attention_ranges import Given
from learners.batch import Offsets, pairs
from learners.device import compiled, place
from learners.flat import Flat
from learners.layers import segment_sum
from learners.tape import Tape, recording

__all__ = ["Columns", "TargetAttention", "matrices"]


_WEIGHTS = "query.weight", "key.weight", "product.weight", "query.bias", "out.weight", "activation.weight", "out.bias"
"""In the order of :mod:`learners.attention_ranges`."""


class Columns(NamedTuple):
    """Some columns of targets and history entries: rows by place of two matrices, which may be one and the same."""

    targets: Tensor
    """``[U, D]``."""
    entries: Tensor
    """``[U, D]``."""
    now: Tensor
    """Row of each candidate, int64 ``[C]``."""
    past: Tensor
    """Row of each entry, int64 ``[H]``."""


def matrices(target: Tensor, history: Tensor) -> list[Columns]:
    """Return targets and entries, ``[C, T]`` and ``[H, T]``, as columns."""
    return [Columns(target, history, *(torch.arange(len(side), device=side.device) for side in (target, history)))]


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
        self.dim = dim
        self.query = nn.Linear(dim, hidden)
        self.key = nn.Linear(dim, hidden, bias=False)
        self.product = nn.Linear(dim, hidden, bias=False)
        self.activation = nn.PReLU()
        self.out = nn.Linear(hidden, 1)
        self._flat: Flat | None = None
        """The weights as the compiled passes take them, made when first asked for and whenever they have got other memory."""

    def forward(self, columns: Sequence[Columns], targets: Offsets, entries: Offsets) -> Tensor:
        """Return per candidate the interest and its product with the target side by side, ``[C, 2 T]``, 0 where the history is
        empty: compiled on the CPU, else :meth:`plain`.

        Args:
            columns: side by side of width ``T``.
            targets: the candidates of request ``r``, offsets ``[R + 1]``.
            entries: its history entries, likewise.

        Raises:
            ValueError: the columns are not as wide as the unit.
        """
        if not compiled(columns[0].targets.device):
            return self.plain(columns, targets, entries)
        if (width := sum(part.targets.shape[1] for part in columns)) != self.dim:
            raise ValueError(f"this attention was made for targets of width {self.dim}, these columns have {width}")
        if self._flat is None or not self._flat.holds():
            named = dict(self.named_parameters())
            self._flat = Flat([[named[name]] for name in _WEIGHTS])
        flat, tape = self._flat, recording()
        if tape is None and torch.is_grad_enabled():
            rows, places = [side for part in columns for side in part[:2]], [part[2:] for part in columns]
            return cast(Tensor, _Attention.apply(flat, places, targets, entries, *flat.parameters, *rows))
        made = _pass(flat, columns, targets, entries, learn=tape is not None)
        if tape is not None:
            tape.then(partial(_back, tape, flat, columns, made), made.interest)
        return made.interest

    def plain(self, columns: Sequence[Columns], targets: Offsets, entries: Offsets) -> Tensor:
        """Return what :meth:`forward` returns, in torch over all pairs."""
        target = torch.cat([part.targets.index_select(0, part.now) for part in columns], 1)
        history = torch.cat([part.entries.index_select(0, part.past) for part in columns], 1)
        candidate, entry = (place(side, target.device) for side in pairs(targets, entries))
        q, k = target.index_select(0, candidate), history.index_select(0, entry)  # [P, T]
        hidden = self.query(target).index_select(0, candidate) + self.key(history).index_select(0, entry)
        weight = self.out(self.activation(hidden + self.product(q * k)))  # [P, 1]
        interest = segment_sum(weight * k, candidate, len(target))
        return torch.cat([interest, interest * target], 1)


def _pass(flat: Flat, columns: Sequence[Columns], targets: Offsets, entries: Offsets, *, learn: bool) -> Pass:
    arrays = []
    for part in columns:
        rows = part.targets.numpy()
        others = rows if part.entries is part.targets else part.entries.numpy()
        arrays.append(attention_kernels.Columns(rows, others, part.now.numpy(), part.past.numpy()))
    return Pass(Given(tuple(arrays), targets, entries, flat.values), len(flat.parameters[3]), learn=learn)


def _back(tape: Tape, flat: Flat, columns: Sequence[Columns], made: Pass) -> None:
    grad = tape.take(made.interest)
    if grad is None:
        return
    rows = grad if grad.strides[1] == grad.itemsize else np.ascontiguousarray(grad)
    made.back(rows, tuple((tape.sums(part.targets), tape.sums(part.entries)) for part in columns), flat.gradient)
    tape.flats.append(flat)


class _Attention(torch.autograd.Function):
    """:class:`learners.attention_passes.Pass` as autograd sees it."""

    @staticmethod
    def forward(
        ctx: Any, flat: Flat, places: Sequence[Sequence[Tensor]], targets: Offsets, entries: Offsets, *given: Tensor
    ) -> Tensor:
        ctx.flat, rows = flat, given[len(flat.parameters) :]
        ctx.shapes = [matrix.shape for matrix in rows]
        sides = zip(rows[::2], rows[1::2], places, strict=True)
        columns = [Columns(now.contiguous(), past.contiguous(), *at) for now, past, at in sides]
        ctx.made = _pass(flat, columns, targets, entries, learn=True)
        # Autograd hangs this call on what is returned: holding that itself, it would hold itself.
        return cast(Tensor, ctx.made.interest.detach())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        of_rows, of_weights = [torch.zeros(shape) for shape in ctx.shapes], np.empty(ctx.flat.n, np.float32)
        arrays = [matrix.numpy() for matrix in of_rows]
        ctx.made.back(grads[0].contiguous().numpy(), tuple(zip(arrays[::2], arrays[1::2], strict=True)), of_weights)
        return None, None, None, None, *map(torch.from_numpy, ctx.flat.views(of_weights)), *of_rows
