"""Forward and backward of :class:`learners.request_mlp.RequestMLP` on the CPU, by hand and by ranges of candidates.

A range goes through all layers in one compiled call (:mod:`learners.mlp_ranges`), as many at once as there are threads
(:mod:`learners.threads`). Gradients of what candidates share are summed within a range, then over the ranges in their order.

Legend: ``C`` candidates, ``S`` rows of all shared parts, ``W`` width of a hidden layer, ``k`` slots, ``T`` rows of the tables
of slot embeddings, ``d`` their width.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from learners import mlp_ranges, mlp_shared
from learners.blas import SGEMM, product
from learners.mlp_ranges import First, Hidden, Sums
from learners.threads import Task, Team, team

__all__ = ["Click", "Plan", "learned", "logits"]

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
LEAST = mlp_ranges.BLOCK
"""A range has a multiple of so many candidates, but for the last: with fewer, its calls cost more than what they compute. And
blocks begin at the same candidates whatever the cut, so that scores have the same bits for any number of ranges."""


class Plan(NamedTuple):
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


class Click(NamedTuple):
    """What the gradient of the click loss by the logits is made of (:class:`learners.mlp_ranges.Loss`), and where it goes."""

    labels: Tensor
    """``[C]``."""
    weights: Tensor
    """``[C]``."""
    gradient: Tensor
    """``[C]``, written."""


def logits(plan: Plan, layers: Sequence[Tensor | None], tensors: Sequence[Tensor]) -> Tensor:
    """Return logits ``[C]``.

    Args:
        plan: of the batch.
        layers: weight of the candidates' columns, of the request's or None, bias; then gain, shift, weight and bias of each
            normalisation and of the linear layer behind it.
        tensors: dense columns, rows of shared parts, the request's, tables of bins and positions.
    """
    return cast(Tensor, _Passes.apply(plan, None, len(layers) // 4, *layers, *tensors))


def learned(
    plan: Plan, layers: Sequence[Tensor | None], tensors: Sequence[Tensor], click: Click, meanwhile: Task | None = None
) -> Tensor:
    """Return :func:`logits`, and go back at once; autograd's backward, if it is given ``click.gradient`` itself, hands out what
    was found.

    Args:
        plan: like the next two as of :func:`logits`.
        layers: see above.
        tensors: see above.
        click: takes the gradient by the logits.
        meanwhile: of :meth:`learners.threads.Team.run`.
    """
    wanted = [tensor.requires_grad for tensor in tensors[: len(plan.widths)]]
    with team() as threads:
        with torch.no_grad():
            entry, hidden = _entered(plan, len(layers) // 4, [*layers, *tensors])
            labels, weights, gradient = (tensor.numpy() for tensor in click)
        loss = mlp_ranges.Loss(gradient, labels, weights)
        out, found = _learned(entry, hidden, loss, wanted, threads, meanwhile)
    made = _Made(entry, hidden, click, out, found)
    return cast(Tensor, _Passes.apply(plan, made, len(layers) // 4, *layers, *tensors))


@dataclasses.dataclass
class _Made:
    """What was found before autograd asked."""

    entry: _Entry
    hidden: Hidden
    click: Click
    """Its gradient is the one that this is for; held, so that no other tensor comes to lie where it is."""
    out: Tensor | None
    found: list[Tensor | None] | None
    """Handed out once: held here too, each would be copied on its way into ``.grad``."""


class _Passes(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, plan: Plan, made: _Made | None, n_layers: int, *given: Tensor | None) -> Tensor:
        ctx.made = made
        if made is not None:
            ctx.entry, ctx.hidden = made.entry, made.hidden
            out, made.out = made.out, None  # autograd hangs this call on what is returned: held here, it would hold itself
            return cast(Tensor, out)
        with team() as threads:
            ctx.entry, ctx.hidden = entry, hidden = _entered(plan, n_layers, given)
            out = torch.empty(len(plan.taken))
            work = SGEMM, entry.first, hidden, out.numpy()
            ranges = _cut(threads, len(out))
            threads.run([partial(mlp_ranges.score, *work, rows.start, rows.stop) for rows in ranges])
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        made = cast(_Made | None, ctx.made)
        if made is not None and grads[0].data_ptr() == made.click.gradient.data_ptr() and made.found is not None:
            found, made.found = made.found, None
        else:
            none = np.zeros(0, np.float32)
            loss = mlp_ranges.Loss(grads[0].contiguous().numpy(), none, none)
            wanted = ctx.needs_input_grad[6 + 4 * len(ctx.hidden.widths) :]
            with team() as threads:
                _, found = _learned(ctx.entry, ctx.hidden, loss, wanted, threads)
        return None, None, None, *found


def _cut(threads: Team, n: int, *, more: int = 0) -> list[slice]:
    """Return the ranges of ``n`` candidates; see :data:`LEAST` and :meth:`learners.threads.Team.cut`."""
    units = threads.cut(-(-n // LEAST), 1, more=more)
    return [slice(at.start * LEAST, min(at.stop * LEAST, n)) for at in units]


def _entered(plan: Plan, n_layers: int, given: Sequence[Tensor | None]) -> tuple[_Entry, Hidden]:
    """Return the first layer and the others of what autograd is given: layers, then tensors."""
    weight, request, bias, *rest = given
    layers, tensors = cast(Sequence[Tensor], rest[: 4 * n_layers]), cast(Sequence[Tensor], rest[4 * n_layers :])
    return _Entry(plan, cast(Tensor, weight), request, cast(Tensor, bias), tensors), _hidden(layers)


def _learned(
    entry: _Entry,
    hidden: Hidden,
    loss: mlp_ranges.Loss,
    needed: Sequence[bool],
    threads: Team,
    meanwhile: Task | None = None,
) -> tuple[Tensor, list[Tensor | None]]:
    """Go forward and back; return the logits, and the gradients from the first weight's on in the order of the arguments."""
    first, out = entry.first, torch.empty(len(entry.plan.taken))
    wanted = _Wanted(entry, needed)
    ranges = _cut(threads, len(out), more=meanwhile is not None)
    shapes = hidden.packed.shape, first.bias.shape, first.w.shape, first.both.shape, first.contribution.shape
    sums = Sums(*(np.empty((len(ranges), *shape), np.float32) for shape in shapes))
    work = SGEMM, first, hidden, out.numpy(), loss, wanted.w, wanted.gradient.numpy()
    own = [Sums(*(array[at] for array in sums)) for at in range(len(ranges))]
    tasks = [partial(mlp_ranges.learn, *work, part, rows.start, rows.stop) for part, rows in zip(own, ranges, strict=True)]
    threads.run(tasks, meanwhile)
    with torch.no_grad():
        of_weight = torch.empty(entry.shape)
        after: list[Any] = [partial(entry.shared_gradient, j, sums.both, of_weight.numpy()) for j in range(len(entry.shared))]
        if entry.plan.slots is not None:  # the longest one first
            of_tables, *made = threads.run([partial(entry.slot_gradient, sums.slots, of_weight.numpy()), *after])
        else:
            of_tables, made = (), [task() for task in after]  # two threads would take longer to meet
        return out, [of_weight, *_gradients(entry, hidden, wanted, sums, of_weight, made), *of_tables]


def _hidden(parameters: Sequence[Tensor]) -> Hidden:
    """Return gains, shifts, weights and biases of the layers in one row."""
    packed = np.concatenate([parameter.numpy().reshape(-1) for parameter in parameters])
    return Hidden(packed, np.array([len(gain) for gain in parameters[::4]]))


def _gradients(
    entry: _Entry, hidden: Hidden, wanted: _Wanted, sums: Sums, of_weight: Tensor, made: Sequence[_OfShared]
) -> list[Tensor | None]:
    """Add the ranges up; return the gradients from the request's weight to the shared rows in the order of the arguments."""
    for part in (sums.packed, sums.bias, sums.w):
        mlp_shared.add_up(part)
    at = 0
    for columns in entry.plan.dense:
        end = at + columns.stop - columns.start
        of_weight[:, columns] = torch.from_numpy(sums.w[0, :, at:end])
        at = end
    of_layers, at, widths = [], 0, [*hidden.widths.tolist(), 1]
    for width, above in itertools.pairwise(widths):
        for shape in ((width,), (width,), (above, width), (above,)):
            end = at + math.prod(shape)
            of_layers.append(torch.from_numpy(sums.packed[0, at:end].reshape(shape)))
            at = end
    of_request = made[-1].of_weight if entry.plan.has_request else None
    of_rows = [each.of_rows for each in made]
    return [of_request, torch.from_numpy(sums.bias[0]), *of_layers, *wanted.split(), *of_rows]


class _Entry:
    """The first layer: its input by parts, and what the rows that candidates share contribute to it."""

    def __init__(self, plan: Plan, weight: Tensor, request: Tensor | None, bias: Tensor, tensors: Sequence[Tensor]) -> None:
        n_dense, n_shared, k = len(plan.widths), len(plan.n_rows), plan.bins.shape[1]
        dense, shared, tables = tensors[:n_dense], tensors[n_dense : n_dense + n_shared], tensors[n_dense + n_shared :]
        self.plan, self.shape = plan, weight.shape
        matrix = weight.numpy()
        x = torch.cat([weight.new_empty(len(plan.taken), 0), *dense], 1) if len(dense) != 1 else dense[0].contiguous()
        self.shared = [np.ascontiguousarray(rows.numpy()) for rows in shared]
        self.weights = [np.ascontiguousarray(matrix[:, columns]) for columns in plan.shared]
        self.weights += [] if request is None else [request.numpy()]
        ends = np.cumsum([0, *plan.n_rows]).tolist()
        self.rows = [slice(*ends[j : j + 2]) for j in range(n_shared)]
        both = np.empty((ends[-1], len(bias)), np.float32)
        for rows, w, place in zip(self.shared, self.weights, self.rows, strict=True):
            product(SGEMM, rows[: place.stop - place.start], False, w, True, both[place], False)
        self.sizes = [len(table) for table in tables]
        self.table = torch.cat(list(tables)).numpy() if tables else np.empty((0, 1), np.float32)  # [T, d]
        self.w_slots = matrix[:, plan.slots] if plan.slots is not None else matrix[:, :0]  # [W, k d]
        contribution = np.empty((len(self.table), k * len(bias)), np.float32)
        if tables:
            mlp_shared.slots_forward(SGEMM, self.table, self.w_slots, k, contribution)
        first_position = self.sizes[0] if len(tables) > 1 else -1
        columns = [matrix[:, part] for part in plan.dense]
        w_dense = np.concatenate(columns, 1) if columns else matrix[:, :0]
        slots = plan.bins, plan.positions, plan.n_bins, first_position
        w_dense = np.ascontiguousarray(w_dense)
        self.first = First(x.numpy(), w_dense, bias.numpy(), both, plan.taken, contribution.reshape(-1, len(bias)), *slots)

    def shared_gradient(self, j: int, of_both: Floats, of_weight: Floats) -> _OfShared:
        """Return the gradients of a shared part; of the candidates' columns they go into ``of_weight``.

        Args:
            j: its number.
            of_both: of the rows by the first layer's output, ``[ranges, S, W]``.
            of_weight: of the first weight.
        """
        rows, place, w = self.shared[j], self.rows[j], self.weights[j]
        of_rows, own = np.empty(rows.shape, np.float32), j < len(self.plan.shared)
        of_own = of_weight[:, self.plan.shared[j]] if own else np.empty(w.shape, np.float32)
        mlp_shared.shared_backward(SGEMM, of_both, place.start, place.stop, rows, w, of_rows, of_own)
        return _OfShared(None if own else torch.from_numpy(of_own), torch.from_numpy(of_rows))

    def slot_gradient(self, of_slots: Floats, of_weight: Floats) -> tuple[Tensor, ...]:
        """Return the gradients of the tables of slots; of the weight's columns they go into ``of_weight``.

        Args:
            of_slots: of their contribution, ``[ranges, T k, W]``.
            of_weight: of the first weight.
        """
        of_table = np.empty(self.table.shape, np.float32)
        by_row, k = of_slots.reshape(len(of_slots), len(self.table), -1), self.plan.bins.shape[1]
        mlp_shared.slots_backward(SGEMM, self.table, self.w_slots, k, by_row, of_table, of_weight[:, self.plan.slots])
        return torch.split(torch.from_numpy(of_table), self.sizes)


class _OfShared(NamedTuple):
    of_weight: Tensor | None
    """Of the request's part, whose weight is one of its own."""
    of_rows: Tensor


class _Wanted:
    """The gradient by those dense columns that need one."""

    def __init__(self, entry: _Entry, needed: Sequence[bool]) -> None:
        self.widths, self.needed = entry.plan.widths, needed[: len(entry.plan.widths)]
        w = entry.first.w
        if not all(self.needed):
            w = np.ascontiguousarray(w[:, np.repeat(np.array(self.needed), self.widths)])
        self.w = w
        self.gradient = torch.empty(len(entry.plan.taken), w.shape[1])

    def split(self) -> list[Tensor | None]:
        """Return it by dense part."""
        widths = [width for width, wanted in zip(self.widths, self.needed, strict=True) if wanted]
        parts = iter(torch.split(self.gradient, widths, 1) if widths else ())
        return [next(parts) if wanted else None for wanted in self.needed]
