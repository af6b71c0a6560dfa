"""Forward and backward of :class:`learners.request_mlp.RequestMLP` on the CPU, by hand and by ranges of candidates.

A range goes through all layers in one compiled call (:mod:`learners.mlp_ranges`), as many at once as there are threads
(:mod:`learners.threads`). Gradients of what candidates share are summed within a range, then over the ranges in their order.

Legend: ``C`` candidates.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from learners import claims, mlp_ranges
from learners.blas import SGEMM
from learners.click_loss import ClickLoss
from learners.flat import Flat
from learners.mlp_entry import Entry, Plan, Wanted, Weights
from learners.mlp_ranges import Sums
from learners.mlp_work import Into, Work, enter_all, stages, work_on
from learners.room import Room
from learners.tape import recording
from learners.threads import Task, Team, team

__all__ = ["Model", "learned", "logits"]

Floats = npt.NDArray[np.float32]
LEAST = mlp_ranges.BLOCK
"""A range has a multiple of so many candidates, but for the last: with fewer, its calls cost more than what they compute. And
blocks begin at the same candidates whatever the cut, so that scores have the same bits for any number of ranges."""

HEAD_START = 0.25
"""How much larger than an equal one the others' ranges are where the caller does something else meanwhile: EGIN's edges and
their loss take about as long as the layers of an eighth of the candidates. One range more, for whoever comes first, would cost
zeros and sums of its own."""


class Model(NamedTuple):
    """An MLP as the passes take it."""

    flat: Flat
    weights: Weights
    of: Weights
    """Gradients, in ``flat.gradient``."""
    views: Callable[[Floats], Weights]
    """Makes the like of an array."""
    room: Room
    """For the sums of a way back."""


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
        meanwhile: of :meth:`learners.threads.Team.share`.
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
            entry = Entry(plan, model.weights, tensors)
            out, found = _learned(entry, loss, needed, model.of, model.room, threads, meanwhile)
        tape.flats.append(model.flat)
        for tensor, of_tensor in zip(tensors, found, strict=True):
            if of_tensor is not None:
                tape.give(tensor, of_tensor)
        return out, ClickLoss(scores, float(losses.sum()) / max(n, 1), gradient)
    of, needed = np.zeros(model.flat.n, np.float32), [tensor.requires_grad for tensor in dense]
    with team() as threads:
        entry = Entry(plan, model.weights, tensors)
        out, found = _learned(entry, loss, needed, model.views(of), model.room, threads, meanwhile)
    click = ClickLoss(scores, float(losses.sum()) / max(n, 1), gradient)
    made = _Made(entry, gradient, out, [*_as_tensors(found), *map(torch.from_numpy, model.flat.views(of))])
    return cast(Tensor, _Passes.apply(model, plan, made, len(tensors), *tensors, *model.flat.parameters)), click


@dataclasses.dataclass
class _Made:
    """What was found before autograd asked."""

    entry: Entry
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
                _, of_tensors = _learned(ctx.entry, loss, ctx.needs_input_grad[4:], model.views(of), model.room, threads)
            found = [*_as_tensors(of_tensors), *map(torch.from_numpy, model.flat.views(of))]
        return None, None, None, None, *found


def _as_tensors(arrays: Sequence[Floats | None]) -> list[Tensor | None]:
    return [None if array is None else torch.from_numpy(array) for array in arrays]


def _cut(threads: Team, n: int, busy: float = 0.0) -> list[slice]:
    """Return the ranges of ``n`` candidates, at most one per thread; see :data:`LEAST`.

    Args:
        threads: they are for.
        n: see above.
        busy: as :data:`HEAD_START`: the last range, which the caller comes to late, is so much smaller than the others.
    """
    units = -(-n // LEAST)
    parts = max(1, min(threads.n, units))
    share = (1 + busy) * units / parts
    ends = [min(round(share * (i + 1)), units - parts + i + 1) for i in range(parts - 1)]
    return [slice(start * LEAST, min(end * LEAST, n)) for start, end in itertools.pairwise([0, *ends, units])]


def _scored(model: Model, plan: Plan, tensors: Sequence[Tensor]) -> tuple[Tensor, Entry]:
    out = torch.empty(len(plan.taken))
    with team() as threads:
        entry, weights = Entry(plan, model.weights, tensors), model.weights
        parts, slots, _ = entry.parts()
        enter_all(SGEMM, entry.first, parts, slots, weights.first, weights.request)
        work = SGEMM, entry.first, weights.hidden, out.numpy()
        threads.run([partial(mlp_ranges.score, *work, rows.start, rows.stop) for rows in _cut(threads, len(out))])
    return out, entry


def _learned(
    entry: Entry,
    loss: mlp_ranges.Loss,
    needed: Sequence[bool],
    of: Weights,
    room: Room,
    threads: Team,
    meanwhile: Task | None = None,
) -> tuple[Tensor, list[Floats | None]]:
    """Go forward and back; return the logits, and the gradients by the tensors; those by the weights are written to ``of``."""
    first, weights, out = entry.first, entry.weights, torch.empty(len(entry.plan.taken))
    wanted = Wanted(entry, needed)
    ranges = _cut(threads, len(out), HEAD_START if meanwhile is not None else 0.0)
    shapes = weights.hidden.packed.shape, first.bias.shape, first.w.shape, first.both.shape, first.contribution.shape
    sums = Sums(*room.arrays([(len(ranges), *shape) for shape in shapes]))
    bounds = np.array([0, *(rows.stop for rows in ranges)])
    parts, slots, of_shared = entry.parts()
    given = first, weights.hidden, parts, slots, weights.first, weights.request, entry.columns
    into = Into(of.first, of.request, of.bias, of.hidden.packed)
    work = Work(*given, out.numpy(), loss, wanted.w, wanted.gradient, bounds, sums, into)
    counts = claims.words(len(sizes := stages(work)), threads.n)
    threads.share(partial(work_on, counts, SGEMM, work), counts, sizes, meanwhile)
    return out, [*wanted.split(), *of_shared]
