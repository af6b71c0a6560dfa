"""Forward and backward of :class:`learners.request_mlp.RequestMLP` on the CPU, by hand and by ranges of candidates.

A range goes through all layers in one compiled call (:mod:`learners.mlp_ranges`), as many at once as there are threads
(:mod:`learners.threads`). Gradients of what candidates share are summed within a range, then over the ranges in their order.

Legend: ``C`` candidates, ``S`` rows of all shared parts, ``W`` width of a hidden layer, ``k`` slots, ``T`` rows of the tables
of slot embeddings, ``d`` their width.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from learners import mlp_ranges, mlp_shared, mlp_slots
from learners.blas import SGEMM
from learners.click_loss import ClickLoss
from learners.flat import Flat
from learners.mlp_ranges import First, Hidden, Sums
from learners.tape import recording
from learners.threads import Task, Team, team

__all__ = ["Model", "Plan", "Weights", "learned", "logits"]

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


class Weights(NamedTuple):
    """The weights of an MLP, or the gradients by them, as views of one array (:class:`learners.flat.Flat`)."""

    first: Floats
    """Of the candidates' columns, ``[W, Dc]``."""
    request: Floats
    """Of the request's, ``[W, Dr]``."""
    bias: Floats
    """``[W]``."""
    hidden: Hidden
    """Normalisations and the linear layers behind them."""


class Model(NamedTuple):
    """An MLP as the passes take it."""

    flat: Flat
    weights: Weights
    of: Weights
    """Gradients, in ``flat.gradient``."""
    views: Callable[[Floats], Weights]
    """Makes the like of an array."""


def logits(model: Model, plan: Plan, tensors: Sequence[Tensor]) -> Tensor:
    """Return logits ``[C]``.

    Args:
        model: the MLP.
        plan: of the batch.
        tensors: dense columns, rows of shared parts, the request's, tables of bins and positions.
    """
    if recording() is not None:
        raise RuntimeError("on a tape an MLP goes back as it learns: call RequestMLP.learn")
    if torch.is_grad_enabled():
        return cast(Tensor, _Passes.apply(model, plan, None, len(tensors), *tensors, *model.flat.parameters))
    return _scored(model, plan, tensors)[0]


def learned(
    model: Model, plan: Plan, tensors: Sequence[Tensor], labels: Tensor, weights: Tensor, meanwhile: Task | None = None
) -> tuple[Tensor, ClickLoss]:
    """Return :func:`logits` and the click loss, and go back at once; autograd's backward, if it is given the loss's gradient
    itself, hands out what was found. On a tape it is given what was found.

    Args:
        model: the MLP.
        plan: of the batch.
        tensors: as of :func:`logits`.
        labels: ``y``, float32 ``[C]``.
        weights: ``w``, float32 ``[C]``.
        meanwhile: of :meth:`learners.threads.Team.run`.
    """
    tape, dense = recording(), tensors[: len(plan.widths)]
    n = len(plan.taken)
    scores, gradient, losses = torch.empty(n), torch.empty(n), np.empty(-(-n // mlp_ranges.BLOCK))
    loss = mlp_ranges.Loss(gradient.numpy(), labels.numpy(), weights.numpy(), scores.numpy(), losses)
    if tape is not None:
        if any(flat is model.flat for flat in tape.flats):
            raise RuntimeError("an MLP learns once in a step: the second gradient would take the place of the first")
        needed = [tape.wants(tensor) for tensor in dense]
        with team() as threads:
            entry = _Entry(plan, model.weights, tensors)
            out, found = _learned(entry, model.weights, loss, needed, model.of, threads, meanwhile)
        tape.flats.append(model.flat)
        for tensor, of_tensor in zip(tensors, found, strict=True):
            if of_tensor is not None:
                tape.give(tensor, of_tensor)
        return out, ClickLoss(scores, float(losses.sum()) / max(n, 1), gradient)
    of, needed = np.zeros(model.flat.n, np.float32), [tensor.requires_grad for tensor in dense]
    with team() as threads:
        entry = _Entry(plan, model.weights, tensors)
        out, found = _learned(entry, model.weights, loss, needed, model.views(of), threads, meanwhile)
    click = ClickLoss(scores, float(losses.sum()) / max(n, 1), gradient)
    made = _Made(entry, gradient, out, [*_as_tensors(found), *map(torch.from_numpy, model.flat.views(of))])
    return cast(Tensor, _Passes.apply(model, plan, made, len(tensors), *tensors, *model.flat.parameters)), click


@dataclasses.dataclass
class _Made:
    """What was found before autograd asked."""

    entry: _Entry
    gradient: Tensor
    """The one by the logits that this is for; held, so that no other tensor comes to lie where it is."""
    out: Tensor | None
    found: list[Tensor | None] | None
    """Handed out once: held here too, each would be copied on its way into ``.grad``."""


class _Passes(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, model: Model, plan: Plan, made: _Made | None, n_tensors: int, *given: Tensor) -> Tensor:
        ctx.model, ctx.made = model, made
        if made is not None:
            ctx.entry = made.entry
            out, made.out = made.out, None  # autograd hangs this call on what is returned: held here, it would hold itself
            return cast(Tensor, out)
        out, ctx.entry = _scored(model, plan, given[:n_tensors])
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        made, model = cast(_Made | None, ctx.made), cast(Model, ctx.model)
        if made is not None and grads[0].data_ptr() == made.gradient.data_ptr() and made.found is not None:
            found, made.found = made.found, None
        else:
            none, of = np.zeros(0, np.float32), np.zeros(model.flat.n, np.float32)
            loss = mlp_ranges.Loss(grads[0].contiguous().numpy(), none, none)
            with team() as threads:
                _, of_tensors = _learned(ctx.entry, model.weights, loss, ctx.needs_input_grad[4:], model.views(of), threads)
            found = [*_as_tensors(of_tensors), *map(torch.from_numpy, model.flat.views(of))]
        return None, None, None, None, *found


def _as_tensors(arrays: Sequence[Floats | None]) -> list[Tensor | None]:
    return [None if array is None else torch.from_numpy(array) for array in arrays]


def _cut(threads: Team, n: int, *, more: int = 0) -> list[slice]:
    """Return the ranges of ``n`` candidates; see :data:`LEAST` and :meth:`learners.threads.Team.cut`."""
    units = threads.cut(-(-n // LEAST), 1, more=more)
    return [slice(at.start * LEAST, min(at.stop * LEAST, n)) for at in units]


def _scored(model: Model, plan: Plan, tensors: Sequence[Tensor]) -> tuple[Tensor, _Entry]:
    out = torch.empty(len(plan.taken))
    with team() as threads:
        entry = _Entry(plan, model.weights, tensors)
        work = SGEMM, entry.first, model.weights.hidden, out.numpy()
        threads.run([partial(mlp_ranges.score, *work, rows.start, rows.stop) for rows in _cut(threads, len(out))])
    return out, entry


def _learned(
    entry: _Entry,
    weights: Weights,
    loss: mlp_ranges.Loss,
    needed: Sequence[bool],
    of: Weights,
    threads: Team,
    meanwhile: Task | None = None,
) -> tuple[Tensor, list[Floats | None]]:
    """Go forward and back; return the logits, and the gradients by the tensors; those by the weights are written to ``of``."""
    first, out = entry.first, torch.empty(len(entry.plan.taken))
    wanted = _Wanted(entry, needed)
    ranges = _cut(threads, len(out), more=meanwhile is not None)
    shapes = weights.hidden.packed.shape, first.bias.shape, first.w.shape, first.both.shape, first.contribution.shape
    sums = Sums(*(np.empty((len(ranges), *shape), np.float32) for shape in shapes))
    work = SGEMM, first, weights.hidden, out.numpy(), loss, wanted.w, wanted.gradient
    own = [Sums(*(array[at] for array in sums)) for at in range(len(ranges))]
    tasks = [partial(mlp_ranges.learn, *work, part, rows.start, rows.stop) for part, rows in zip(own, ranges, strict=True)]
    threads.run(tasks, meanwhile)
    mlp_shared.add_weights(sums.packed, sums.bias, sums.w, of.hidden.packed, of.bias, of.first, entry.columns)
    after: list[Task] = [partial(entry.shared_gradient, j, sums.both, of) for j in range(len(entry.shared))]
    if entry.plan.slots is not None:  # the longest one first
        of_tables, *of_rows = threads.run([partial(entry.slot_gradient, sums.slots, of.first), *after])
    else:
        of_tables, of_rows = (), [task() for task in after]  # two threads would take longer to meet
    return out, [*wanted.split(), *of_rows, *of_tables]


@lru_cache(maxsize=64)
def _columns(dense: tuple[tuple[int, int], ...]) -> Ints:
    """Return the columns of some ranges of them."""
    return np.array([column for start, stop in dense for column in range(start, stop)], np.int64)


class _Entry:
    """The first layer: its input by parts, and what the rows that candidates share contribute to it."""

    def __init__(self, plan: Plan, weights: Weights, tensors: Sequence[Tensor]) -> None:
        n_dense, n_shared, k = len(plan.widths), len(plan.n_rows), plan.bins.shape[1]
        arrays = [tensor.detach().numpy() for tensor in tensors]
        dense, tables = arrays[:n_dense], arrays[n_dense + n_shared :]
        self.plan = plan
        self.columns = _columns(tuple((part.start, part.stop) for part in plan.dense))
        self.shared = [np.ascontiguousarray(rows) for rows in arrays[n_dense : n_dense + n_shared]]
        ends = list(itertools.accumulate(plan.n_rows, initial=0))
        self.rows = [slice(*ends[j : j + 2]) for j in range(n_shared)]
        both = np.empty((ends[-1], len(weights.bias)), np.float32)
        self.weights = [(weights.first, part.start) for part in plan.shared] + [(weights.request, 0)] * plan.has_request
        for rows, (w, start), place in zip(self.shared, self.weights, self.rows, strict=True):
            mlp_shared.shared_forward(SGEMM, rows, w, start, both, place.start, place.stop)
        self.sizes = [len(table) for table in tables]
        self.table = np.concatenate(tables) if tables else np.empty((0, 1), np.float32)  # [T, d]
        self.w_slots = weights.first[:, plan.slots] if plan.slots is not None else weights.first[:, :0]  # [W, k d]
        contribution = np.empty((len(self.table), k * len(weights.bias)), np.float32)
        first_position = self.sizes[0] if len(tables) > 1 else -1
        if tables:
            self.pairs = mlp_slots.occurring(plan.bins, plan.positions, plan.n_bins, first_position, len(self.table))
            mlp_slots.slots_forward(self.table, self.w_slots, self.pairs, contribution)
        slots = plan.bins, plan.positions, plan.n_bins, first_position
        w_dense, bias = weights.first.take(self.columns, 1), weights.bias
        self.first = First(
            _beside(dense, len(plan.taken)), w_dense, bias, both, plan.taken, contribution.reshape(-1, len(bias)), *slots
        )

    def shared_gradient(self, j: int, of_both: Floats, of: Weights) -> Floats:
        """Return the gradient by the rows of a shared part; that by its weights goes into ``of``.

        Args:
            j: its number.
            of_both: of the rows by the first layer's output, ``[ranges, S, W]``.
            of: gradients by the weights.
        """
        rows, place, (w, start) = self.shared[j], self.rows[j], self.weights[j]
        of_w = of.first if j < len(self.plan.shared) else of.request
        of_rows = np.empty(rows.shape, np.float32)
        mlp_shared.shared_backward(SGEMM, of_both, place.start, place.stop, rows, w, start, of_rows, of_w)
        return of_rows

    def slot_gradient(self, of_slots: Floats, of_first: Floats) -> list[Floats]:
        """Return the gradients of the tables of slots; of the weight's columns they go into ``of_first``.

        Args:
            of_slots: of their contribution, ``[ranges, T k, W]``.
            of_first: of the first weight.
        """
        of_table = np.empty(self.table.shape, np.float32)
        by_row = of_slots.reshape(len(of_slots), len(self.table), -1)
        mlp_slots.slots_backward(self.table, self.w_slots, self.pairs, by_row, of_table, of_first[:, self.plan.slots])
        return np.split(of_table, np.cumsum(self.sizes)[:-1])


def _beside(parts: Sequence[Floats], n: int) -> Floats:
    """Return the columns of some parts side by side, ``[n, V]``."""
    if len(parts) == 1 and parts[0].flags.c_contiguous:
        return parts[0]
    out = torch.empty(n, sum(part.shape[1] for part in parts)).numpy()  # begins at a cache line
    return np.concatenate(parts, 1, out) if parts else out


class _Wanted:
    """The gradient by those dense columns that need one."""

    def __init__(self, entry: _Entry, needed: Sequence[bool]) -> None:
        self.widths, self.needed = entry.plan.widths, needed[: len(entry.plan.widths)]
        w = entry.first.w
        if not all(self.needed):
            w = np.ascontiguousarray(w[:, np.repeat(np.array(self.needed), self.widths)])
        self.w = w
        self.gradient = np.empty((len(entry.plan.taken), w.shape[1]), np.float32)

    def split(self) -> list[Floats | None]:
        """Return it by dense part."""
        found: list[Floats | None] = []
        at = 0
        for width, wanted in zip(self.widths, self.needed, strict=True):
            found.append(self.gradient[:, at : at + width] if wanted else None)
            at += width * wanted
        return found
