"""RequestMLP: an MLP over candidates that computes what several of them share once.

Legend: ``C`` candidates, ``R`` requests, ``U`` distinct rows of a part, ``W`` width of a hidden layer, ``k`` slots.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from learners import mlp_kernels
from learners.sim_extract import SimExtract, Slots
from learners.tables import Gathered

__all__ = ["Part", "RequestMLP", "SlotPart", "distinct"]

Ints = npt.NDArray[np.int64]
NO_INDEX: Ints = np.zeros((0, 0), np.int64)


class Part(NamedTuple):
    """Columns of the candidates' input: ``rows[places]`` ``[C, d]``, or ``rows`` itself where there are no places."""

    rows: Tensor
    places: Tensor | None = None
    """int64 ``[C]``: worth it where rows are fewer than candidates."""

    def expanded(self) -> Tensor:
        """Return the columns, ``[C, d]``."""
        return self.rows if self.places is None else self.rows.index_select(0, self.places)


def distinct(gathered: Gathered) -> Part:
    """Return use 0 of a gather as a part: its distinct rows are the first of the gathered ones."""
    places = gathered.places[0]
    n = int(places.max()) + 1 if len(places) else 0
    return Part(gathered.weight[:n], places)


class SlotPart(NamedTuple):
    """Columns of the candidates' input: the embedding of the slots, ``[C, k dim]``."""

    embedding: SimExtract
    slots: Slots


class RequestMLP(nn.Module):
    """MLP over (candidate, request) inputs whose first layer treats what candidates share once.

    Each hidden layer is ``ReLU(LayerNorm(.))``: normalisation within one candidate, so no score depends on another one, and it
    keeps up with a stream whose embeddings move fast. ``h_1 = W_c x_c + (W_r x_r)[request of c] + b`` equals a layer over the
    concatenation, at a tenth of the work for the request's part when ten candidates share it; likewise for columns that are
    rows of few distinct items, or of the tables of slot embeddings (:class:`SlotPart`).

    Args:
        candidate_dim: width of the candidate's input.
        request_dim: width of the request's input; may be 0.
        hidden: widths of the hidden layers, one at least.
    """

    def __init__(self, candidate_dim: int, request_dim: int, hidden: Sequence[int] = (200, 80)) -> None:
        super().__init__()
        self.candidate = nn.Linear(candidate_dim, hidden[0])
        self.request = nn.Linear(request_dim, hidden[0], bias=False) if request_dim else None
        _as_one_layer(self.candidate, self.request)
        layers: list[nn.Module] = []
        for wide, narrow in itertools.pairwise(hidden):
            layers += [nn.LayerNorm(wide), nn.ReLU(), nn.Linear(wide, narrow)]
        self.rest = nn.Sequential(*layers, nn.LayerNorm(hidden[-1]), nn.ReLU(), nn.Linear(hidden[-1], 1))

    def forward(self, candidate: Sequence[Part | SlotPart], request: Tensor, request_of: Tensor) -> Tensor:
        """Return logits ``[C]``: compiled on the CPU, :meth:`plain` elsewhere.

        Args:
            candidate: columns of the candidates, together of ``candidate_dim``.
            request: ``[R, Dr]``.
            request_of: request of each candidate, int64 ``[C]``.
        """
        if request_of.device.type != "cpu":
            return self.plain(candidate, request, request_of)
        plan, tensors = _plan(candidate, request if self.request is not None else None, request_of)
        layers = [parameter for layer in self.rest for parameter in layer.parameters()]
        weight = self.candidate.weight, None if self.request is None else self.request.weight, self.candidate.bias
        return cast(Tensor, _Compiled.apply(plan, len(layers), *weight, *layers, *tensors))

    def plain(self, candidate: Sequence[Part | SlotPart], request: Tensor, request_of: Tensor) -> Tensor:
        """Return what :meth:`forward` returns, layer by layer in torch over the whole input."""
        columns = [part.expanded() if isinstance(part, Part) else part.embedding.embed(part.slots) for part in candidate]
        first = self.candidate(torch.cat(columns, 1))
        if self.request is not None:
            first = first + self.request(request).index_select(0, request_of)
        out: Tensor = self.rest(first)
        return out.squeeze(1)


def _as_one_layer(candidate: nn.Linear, request: nn.Linear | None) -> None:
    """Initialise both halves as one layer over the concatenation would be (the bound falls with the full fan-in)."""
    fan_in = candidate.in_features + (request.in_features if request is not None else 0)
    bound = fan_in**-0.5
    for layer in (candidate, request):
        if layer is not None:
            nn.init.uniform_(layer.weight, -bound, bound)
    nn.init.uniform_(candidate.bias, -bound, bound)


class _Plan(NamedTuple):
    """Which columns of the first weight belong to which tensor, and the rows that each candidate takes."""

    dense: list[slice]
    shared: list[slice]
    has_request: bool
    slots: slice | None
    taken: Ints
    """Rows of the shared parts below each other, the request's last, ``[C, J]``."""
    bins: Ints
    positions: Ints
    n_bins: int
    n_candidates: int


def _plan(candidate: Sequence[Part | SlotPart], request: Tensor | None, request_of: Tensor) -> tuple[_Plan, list[Tensor]]:
    """Return the plan and its tensors: dense columns, shared rows, the request's, tables of bins and positions."""
    dense: list[slice] = []
    shared: list[slice] = []
    of_dense: list[Tensor] = []
    of_shared: list[Tensor] = []
    tables: list[Tensor] = []
    index: list[Tensor] = []
    slots, bins, positions, n_bins = None, NO_INDEX, NO_INDEX, 0
    at = 0
    for part in candidate:
        if isinstance(part, SlotPart):
            if slots is not None:
                raise ValueError("RequestMLP takes one SlotPart among a candidate's columns; embed the others")
            slots = slice(at, at + part.embedding.width)
            bins, positions = part.slots.bins.numpy(), part.slots.positions.numpy()
            n_bins = part.embedding.n_bins
            tables = part.embedding.tables()
            at = slots.stop
            continue
        columns = slice(at, at + part.rows.shape[1])
        at = columns.stop
        if part.places is None:
            dense.append(columns)
            of_dense.append(part.rows)
        else:
            shared.append(columns)
            of_shared.append(part.rows)
            index.append(part.places)
    if request is not None:
        of_shared.append(request)
        index.append(request_of)
    n = len(request_of)
    joined = np.empty((n, len(index)), np.int64)
    first = 0
    for j, (rows, places) in enumerate(zip(of_shared, index, strict=True)):
        np.add(places.numpy(), first, out=joined[:, j])
        first += len(rows)
    if slots is None:
        bins = positions = np.zeros((n, 0), np.int64)
    plan = _Plan(dense, shared, request is not None, slots, joined, bins, positions, n_bins, n)
    return plan, [*of_dense, *of_shared, *tables]


class _Compiled(torch.autograd.Function):
    """Forward and backward by hand: matrix products in torch, everything between them in one pass each."""

    @staticmethod
    def forward(
        ctx: Any, plan: _Plan, n_layers: int, weight: Tensor, request: Tensor | None, bias: Tensor, *rest: Tensor
    ) -> Tensor:
        layers, tensors = rest[:n_layers], rest[n_layers:]
        n_dense, n_shared = len(plan.dense), len(plan.shared) + plan.has_request
        dense, shared, tables = tensors[:n_dense], tensors[n_dense : n_dense + n_shared], tensors[n_dense + n_shared :]
        width = len(bias)
        x = torch.cat(dense, 1) if dense else weight.new_zeros(plan.n_candidates, 0)
        w_dense = torch.cat([weight[:, columns] for columns in plan.dense], 1) if dense else weight[:, :0]
        z = torch.addmm(bias, x, w_dense.t())
        weights = [weight[:, columns] for columns in plan.shared] + ([request] if request is not None else [])
        both = torch.empty(sum(map(len, shared)), width)
        parts = torch.split(both, [len(rows) for rows in shared])
        for rows, w, out in zip(shared, weights, parts, strict=True):
            torch.mm(rows, w.t(), out=out)
        k = plan.bins.shape[1]
        table = torch.cat(tables) if tables else weight.new_zeros(0, 1)  # [T, d]
        by_slot = _by_slot(weight, plan.slots, k)  # [d, k W]
        contribution = (table @ by_slot).view(-1, width)  # [T k, W]
        first_position = len(tables[0]) if len(tables) > 1 else -1
        mlp_kernels.add_parts(
            z.numpy(), both.numpy(), plan.taken, contribution.numpy(), plan.bins, plan.positions, plan.n_bins, first_position
        )
        saved = []
        for at in range(0, len(layers) - 2, 4):
            gain, shift, w, b = layers[at : at + 4]
            out, inverse = torch.empty_like(z), torch.empty(len(z))
            mlp_kernels.normalise(z.numpy(), gain.numpy(), shift.numpy(), out.numpy(), inverse.numpy())
            saved.append((z, out, inverse, gain, w))
            z = torch.addmm(b, out, w.t())
        ctx.plan, ctx.saved, ctx.first_position = plan, saved, first_position
        ctx.first = x, w_dense, shared, weights, table, by_slot, [len(t) for t in tables]
        ctx.shape, ctx.n_layers = weight.shape, n_layers
        return z.squeeze(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        plan: _Plan = ctx.plan
        of_layers: list[Tensor] = []
        _, out, _, _, w = ctx.saved[-1]
        grad, grad_w = torch.empty_like(out), torch.zeros_like(w)
        total = mlp_kernels.head_backward(
            grads[0].contiguous().numpy(), out.numpy(), w[0].numpy(), grad.numpy(), grad_w[0].numpy()
        )
        after = [grad_w, grads[0].new_tensor([total])]
        for number in range(len(ctx.saved) - 1, -1, -1):
            z, out, inverse, gain, _ = ctx.saved[number]
            sums = torch.empty(3, len(gain))
            mlp_kernels.normalise_backward(grad.numpy(), z.numpy(), out.numpy(), inverse.numpy(), gain.numpy(), sums.numpy())
            of_layers = [sums[0], sums[1], *after, *of_layers]
            if number:
                below, w = ctx.saved[number - 1][1], ctx.saved[number - 1][4]
                after = [grad.t() @ below, sums[2]]
                grad = grad @ w
        x, w_dense, shared, weights, table, by_slot, sizes = ctx.first
        grad_shared = torch.zeros(sum(map(len, shared)), grad.shape[1])
        grad_slots = torch.zeros(len(table) * plan.bins.shape[1], grad.shape[1])
        mlp_kernels.scatter_parts(
            grad.numpy(), plan.taken, plan.bins, plan.positions, plan.n_bins, ctx.first_position,
            grad_shared.numpy(), grad_slots.numpy(),
        )  # fmt: skip
        weight = torch.empty(ctx.shape)
        of_dense = _dense_gradients(plan, grad, x, w_dense, weight, ctx.needs_input_grad[5 + ctx.n_layers :])
        parts = torch.split(grad_shared, [len(rows) for rows in shared])
        for columns, part, rows in zip(plan.shared, parts, shared, strict=False):
            weight[:, columns] = part.t() @ rows
        request = parts[-1].t() @ shared[-1] if plan.has_request else None
        of_shared = [part @ w for part, w in zip(parts, weights, strict=True)]
        of_tables: tuple[Tensor, ...] = ()
        if plan.slots is not None:
            by_row = grad_slots.view(len(table), -1)  # [T, k W]
            k, dim = plan.bins.shape[1], table.shape[1]
            of_weight = (table.t() @ by_row).view(dim, k, -1)
            weight[:, plan.slots] = of_weight.permute(2, 1, 0).reshape(len(weight), k * dim)
            of_tables = torch.split(by_row @ by_slot.t(), sizes)
        return None, None, weight, request, sums[2], *of_layers, *of_dense, *of_shared, *of_tables


def _by_slot(weight: Tensor, columns: slice | None, k: int) -> Tensor:
    """Return the weight's columns of the slots as ``[d, k W]``: one product then gives each table row's part in each slot."""
    if columns is None:
        return weight.new_zeros(1, 0)
    return weight[:, columns].reshape(len(weight), k, -1).permute(2, 1, 0).reshape(-1, k * len(weight))


def _dense_gradients(
    plan: _Plan, grad: Tensor, x: Tensor, w_dense: Tensor, weight: Tensor, needed: Sequence[bool]
) -> list[Tensor | None]:
    """Write the weight's columns of the dense parts; return the gradients of those parts that need one."""
    if not plan.dense:
        return []
    of_weight = grad.t() @ x
    widths = [columns.stop - columns.start for columns in plan.dense]
    for columns, part in zip(plan.dense, torch.split(of_weight, widths, 1), strict=True):
        weight[:, columns] = part
    chosen = [columns for columns, wanted in zip(torch.split(w_dense, widths, 1), needed, strict=False) if wanted]
    if not chosen:
        return [None] * len(plan.dense)
    parts = iter(torch.split(grad @ torch.cat(chosen, 1), [columns.shape[1] for columns in chosen], 1))
    return [next(parts) if wanted else None for wanted in needed[: len(plan.dense)]]
