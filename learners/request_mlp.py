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

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


class Part(NamedTuple):
    """Columns of the candidates' input: ``rows[places]`` ``[C, d]``, or ``rows`` itself where there are no places."""

    rows: Tensor
    places: Tensor | None = None
    """int64 ``[C]``: worth it where rows are fewer than candidates."""
    n_rows: int | None = None
    """Places are below it; None says nothing of them. Rows from there on cost nothing."""

    def expanded(self) -> Tensor:
        """Return the columns, ``[C, d]``."""
        return self.rows if self.places is None else self.rows.index_select(0, self.places)


def distinct(gathered: Gathered) -> Part:
    """Return use 0 of a gather as a part: its distinct rows are the first of the gathered ones."""
    return Part(gathered.weight, gathered.places[0], gathered.n_first)


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
        self._own: list[nn.Parameter | None] | None = None  # in the order of _Compiled; made once, torch walks modules slowly

    def forward(self, candidate: Sequence[Part | SlotPart], request: Tensor, request_of: Tensor) -> Tensor:
        """Return logits ``[C]``: compiled on the CPU, :meth:`plain` elsewhere.

        Args:
            candidate: columns of the candidates, together of ``candidate_dim``.
            request: ``[R, Dr]``.
            request_of: request of each candidate, int64 ``[C]``.
        """
        if request_of.device.type != "cpu":
            return self.plain(candidate, request, request_of)
        if self._own is None:
            request_weight = None if self.request is None else self.request.weight
            own = [self.candidate.weight, request_weight, self.candidate.bias, *self.rest.parameters()]
            self._own = cast(list[nn.Parameter | None], own)
        plan, tensors = _plan(candidate, request if self._own[1] is not None else None, request_of)
        return cast(Tensor, _Compiled.apply(plan, len(self._own) - 3, *self._own, *tensors))

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
    """Neighbouring columns are one slice."""
    widths: list[int]
    """Of each dense part."""
    shared: list[slice]
    has_request: bool
    n_rows: list[int]
    """Of each shared part, the request's last."""
    slots: slice | None
    taken: Ints
    """Rows of the shared parts below each other, the request's last, ``[C, J]``."""
    bins: Ints
    positions: Ints
    n_bins: int


def _plan(candidate: Sequence[Part | SlotPart], request: Tensor | None, request_of: Tensor) -> tuple[_Plan, list[Tensor]]:
    """Return the plan and its tensors: dense columns, shared rows, the request's, tables of bins and positions."""
    dense: list[slice] = []
    shared: list[slice] = []
    of_dense: list[Tensor] = []
    of_shared: list[Tensor] = []
    tables: list[Tensor] = []
    index: list[Tensor] = []
    n_rows: list[int] = []
    slots, n_bins, at = None, 0, 0
    bins = positions = np.zeros((request_of.numel(), 0), np.int64)
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
        rows, places, n = part
        height, width = rows.shape
        if places is not None:
            shared.append(slice(at, at + width))
            of_shared.append(rows)
            index.append(places)
            n_rows.append(height if n is None else n)
        elif width:
            if dense and dense[-1].stop == at:
                dense[-1] = slice(dense[-1].start, at + width)
            else:
                dense.append(slice(at, at + width))
            of_dense.append(rows)
        at += width
    if request is not None:
        of_shared.append(request)
        index.append(request_of)
        n_rows.append(len(request))
    taken = np.empty((request_of.numel(), len(index)), np.int64)
    first = 0
    for j, (n, places) in enumerate(zip(n_rows, index, strict=True)):
        np.add(places.numpy(), first, out=taken[:, j])
        first += n
    widths = [rows.shape[1] for rows in of_dense]
    plan = _Plan(dense, widths, shared, request is not None, n_rows, slots, taken, bins, positions, n_bins)
    return plan, [*of_dense, *of_shared, *tables]


class _Compiled(torch.autograd.Function):
    """Forward and backward by hand: matrix products in torch, everything between them in one pass each.

    Products read columns of a weight, and write columns of its gradient, in place. What stands between two products is fewer
    and larger steps rather than clear ones: on a batch of a thousand candidates a torch operation costs as much as it computes.
    """

    @staticmethod
    def forward(
        ctx: Any, plan: _Plan, n_layers: int, weight: Tensor, request: Tensor | None, bias: Tensor, *rest: Tensor
    ) -> Tensor:
        layers, tensors = rest[:n_layers], rest[n_layers:]
        n_dense, n_shared = len(plan.widths), len(plan.n_rows)
        dense, shared, tables = tensors[:n_dense], tensors[n_dense : n_dense + n_shared], tensors[n_dense + n_shared :]
        width, n = len(bias), len(plan.taken)
        x = dense[0] if n_dense == 1 else torch.cat(dense, 1) if dense else weight.new_empty(n, 0)
        w_dense = _columns(weight, plan.dense)
        z = torch.addmm(bias, x, w_dense.t())
        weights = [weight[:, columns] for columns in plan.shared] + ([request] if request is not None else [])
        both, first = torch.empty(sum(plan.n_rows), width), 0
        for rows, w, n_rows in zip(shared, weights, plan.n_rows, strict=True):
            torch.mm(rows[:n_rows], w.t(), out=both[first : first + n_rows])
            first += n_rows
        k = plan.bins.shape[1]
        table = torch.cat(tables) if tables else weight.new_empty(0, 1)  # [T, d]
        by_slot = _by_slot(weight, plan.slots, k)  # [d, k W]
        contribution = (table @ by_slot).view(-1, width)  # [T k, W]
        first_position = len(tables[0]) if len(tables) > 1 else -1
        gain, shift, w, b = layers[:4]
        out, inverse = torch.empty_like(z), np.empty(n, np.float32)
        arrays = z.numpy(), both.numpy(), plan.taken, contribution.numpy(), plan.bins, plan.positions, plan.n_bins
        mlp_kernels.enter(*arrays, first_position, gain.numpy(), shift.numpy(), out.numpy(), inverse)
        saved = [_Layer(z.numpy(), out, inverse, gain.numpy(), w)]
        z = torch.addmm(b, out, w.t())
        for at in range(4, n_layers, 4):
            gain, shift, w, b = layers[at : at + 4]
            out, inverse = torch.empty_like(z), np.empty(n, np.float32)
            mlp_kernels.normalise(z.numpy(), gain.numpy(), shift.numpy(), out.numpy(), inverse)
            saved.append(_Layer(z.numpy(), out, inverse, gain.numpy(), w))
            z = torch.addmm(b, out, w.t())
        ctx.plan, ctx.saved, ctx.first_position, ctx.n_layers = plan, saved, first_position, n_layers
        ctx.first = x, w_dense, shared, weights, table, by_slot, [len(t) for t in tables]
        ctx.shape = weight.shape
        return z.view(-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        plan: _Plan = ctx.plan
        x, w_dense, shared, weights, table, by_slot, sizes = ctx.first
        grad, of_rest, above = _through_layers(grads[0].contiguous(), ctx.saved)
        width, k = grad.shape[1], plan.bins.shape[1]
        of_both, of_slots = torch.zeros(sum(plan.n_rows), width), torch.zeros(len(table) * k, width)
        z, out, inverse, gain, _ = ctx.saved[0]
        sums = torch.empty(3, width)
        mlp_kernels.enter_backward(
            grad.numpy(), z, out.numpy(), inverse, gain, sums.numpy(), plan.taken, plan.bins, plan.positions, plan.n_bins,
            ctx.first_position, of_both.numpy(), of_slots.numpy(),
        )  # fmt: skip
        of_layers = [sums[0], sums[1], *above, *of_rest]
        of_weight = torch.empty(ctx.shape)
        of_dense = _dense_gradients(plan, grad, x, w_dense, of_weight, ctx.needs_input_grad[5 + ctx.n_layers :])
        of_request, of_shared, first = None, [], 0
        for j, (rows, w, n_rows) in enumerate(zip(shared, weights, plan.n_rows, strict=True)):
            part = of_both[first : first + n_rows]
            first += n_rows
            if j < len(plan.shared):
                torch.mm(part.t(), rows[:n_rows], out=of_weight[:, plan.shared[j]])
            else:
                of_request = torch.mm(part.t(), rows)
            of_rows = torch.empty(rows.shape)
            torch.mm(part, w, out=of_rows[:n_rows])
            of_rows[n_rows:] = 0
            of_shared.append(of_rows)
        of_tables: tuple[Tensor, ...] = ()
        if plan.slots is not None:
            by_row = of_slots.view(len(table), -1)  # [T, k W]
            dim = table.shape[1]
            of_columns = (table.t() @ by_row).view(dim, k, -1)
            of_weight[:, plan.slots] = of_columns.permute(2, 1, 0).reshape(len(of_weight), k * dim)
            of_tables = torch.split(by_row @ by_slot.t(), sizes)
        return None, None, of_weight, of_request, sums[2], *of_layers, *of_dense, *of_shared, *of_tables


class _Layer(NamedTuple):
    """What backward needs of a normalised layer and the linear one after it."""

    z: Floats
    """Standardised, ``[C, W]``."""
    out: Tensor
    """``[C, W]``."""
    inverse: Floats
    """``[C]``."""
    gain: Floats
    w: Tensor
    """Of the linear layer that takes ``out``."""


def _through_layers(of_logits: Tensor, saved: list[_Layer]) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Return the gradient by the first layer's output, ``[C, W]``, those of all parameters above the linear layer that takes it
    (gain, shift, weight, bias of each), and those of that layer (weight, bias)."""
    last = saved[-1]
    of_rest: list[Tensor] = []
    if len(saved) == 1:
        column = of_logits.unsqueeze(1)
        return torch.mm(column, last.w), of_rest, [torch.mm(column.t(), last.out), column.sum(0)]
    grad, sums = torch.empty_like(last.out), torch.empty(4, last.out.shape[1])
    total = mlp_kernels.leave_backward(
        of_logits.numpy(), last.w.numpy()[0], grad.numpy(), last.z, last.out.numpy(), last.inverse, last.gain, sums.numpy()
    )
    above = [sums[3:], of_logits.new_tensor([total])]
    for number in range(len(saved) - 2, -1, -1):
        layer = saved[number]
        of_rest = [sums[0], sums[1], *above, *of_rest]
        above = [torch.mm(grad.t(), layer.out), sums[2]]
        grad = torch.mm(grad, layer.w)
        if number:
            sums = torch.empty(3, grad.shape[1])
            mlp_kernels.normalise_backward(grad.numpy(), layer.z, layer.out.numpy(), layer.inverse, layer.gain, sums.numpy())
    return grad, of_rest, above


def _columns(weight: Tensor, columns: list[slice]) -> Tensor:
    """Return those columns of a weight, without a copy where they are neighbours."""
    if len(columns) == 1:
        return weight[:, columns[0]]
    return torch.cat([weight[:, part] for part in columns], 1) if columns else weight[:, :0]


def _by_slot(weight: Tensor, columns: slice | None, k: int) -> Tensor:
    """Return the weight's columns of the slots as ``[d, k W]``: one product then gives each table row's part in each slot."""
    if columns is None:
        return weight.new_empty(1, 0)
    return weight[:, columns].reshape(len(weight), k, -1).permute(2, 1, 0).reshape(-1, k * len(weight))


def _dense_gradients(
    plan: _Plan, grad: Tensor, x: Tensor, w_dense: Tensor, of_weight: Tensor, needed: Sequence[bool]
) -> list[Tensor | None]:
    """Write the weight's columns of the dense parts; return the gradients of those parts that need one."""
    if not plan.dense:
        return []
    if len(plan.dense) == 1:
        torch.mm(grad.t(), x, out=of_weight[:, plan.dense[0]])
    else:
        sizes = [columns.stop - columns.start for columns in plan.dense]
        for columns, part in zip(plan.dense, torch.split(torch.mm(grad.t(), x), sizes, 1), strict=True):
            of_weight[:, columns] = part
    needed = needed[: len(plan.widths)]
    if all(needed):
        return list(torch.split(torch.mm(grad, w_dense), plan.widths, 1))
    chosen = [w for w, wanted in zip(torch.split(w_dense, plan.widths, 1), needed, strict=True) if wanted]
    if not chosen:
        return [None] * len(needed)
    parts = iter(torch.split(torch.mm(grad, torch.cat(chosen, 1)), [w.shape[1] for w in chosen], 1))
    return [next(parts) if wanted else None for wanted in needed]
