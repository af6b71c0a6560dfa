"""A step of :class:`learners.request_mlp.RequestMLP` as tasks that threads claim: one compiled call in each of them, and no
meeting in the interpreter.

Three stages (:mod:`learners.claims`): what the rows that candidates share contribute to the first layer, a task per part;
ranges of candidates through all layers and back (:mod:`learners.mlp_ranges`); the gradients by those rows and by the weights, a
task per part. What a task computes depends on the cut alone, so no bit depends on who claimed it.

Legend: ``C`` candidates, ``V`` width of the dense columns, ``W`` width of the first layer, ``R`` ranges.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from learners.claims import BUSY, DONE, Words, claim, done, wait
from learners.mlp_ranges import First, Hidden, Loss, Sums, learn
from learners.mlp_shared import add_weights, part_backward, part_forward
from learners.mlp_slots import SlotRows, clear, enter_slots, enter_slots_backward
from negative_queues.kernels import kernel

__all__ = ["Into", "Work", "enter_all", "stages", "work_on"]

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
ENTER, RANGES, SETTLE = 0, 1, 2


class Into(NamedTuple):
    """Takes the gradients by the weights."""

    first: Floats
    """Of the candidates' columns, ``[W, Dc]``."""
    request: Floats
    """``[W, Dr]``."""
    bias: Floats
    """``[W]``."""
    packed: Floats
    """As :attr:`learners.mlp_ranges.Hidden.packed`."""


class Work(NamedTuple):
    """All that a step of the MLP reads and writes."""

    first: First
    hidden: Hidden
    parts: Ints
    """Of :func:`learners.mlp_shared.parts_of`."""
    slots: SlotRows
    w_first: Floats
    """Weights of the candidates' columns, ``[W, Dc]``."""
    w_request: Floats
    """``[W, Dr]``."""
    columns: Ints
    """Of :attr:`w_first` that are dense, ``[V]``."""
    logits: Floats
    """Written, ``[C]``."""
    loss: Loss
    wanted: Floats
    """As :func:`learners.mlp_ranges.learn`."""
    of_x: Floats
    """Likewise."""
    bounds: Ints
    """Where the ranges begin, and where the last one ends, ``[R + 1]``."""
    sums: Sums
    """Of each range: ``[R, ..]``."""
    into: Into


def stages(work: Work) -> tuple[int, int, int]:
    """Return how many tasks the stages have."""
    n = len(work.parts) + (len(work.slots.ends) > 1)
    return n, len(work.bounds) - 1, n + 1


@kernel
def enter_all(sgemm: int, first: First, parts: Ints, slots: SlotRows, w_first: Floats, w_request: Floats) -> None:
    """Write what the rows that candidates share contribute to the first layer, all of it."""
    for task in range(len(parts) + (len(slots.ends) > 1)):
        _enter(sgemm, first, parts, slots, w_first, w_request, task)


@kernel
def _enter(sgemm: int, first: First, parts: Ints, slots: SlotRows, w_first: Floats, w_request: Floats, task: int) -> None:
    """Do a task of the first stage; what is likely to take longest comes first."""
    if len(slots.ends) > 1:
        if task == 0:
            enter_slots(sgemm, slots, w_first, first.contribution)
            return
        task -= 1
    part_forward(sgemm, parts, len(parts) - 1 - task, w_first, w_request, first.both)


@kernel
def work_on(job: Words, sgemm: int, work: Work, until: int) -> None:
    """Claim tasks until none is left.

    Args:
        job: of three stages, for :func:`learners.claims.claim`.
        sgemm: of :func:`learners.blas.product`.
        work: see there.
        until: when to return, of :mod:`learners.claims`.
    """
    n_ranges, n_parts = len(work.bounds) - 1, len(work.parts) + (len(work.slots.ends) > 1)
    task = claim(job, ENTER, n_parts)
    while task >= 0:
        _enter(sgemm, work.first, work.parts, work.slots, work.w_first, work.w_request, task)
        done(job, ENTER)
        task = claim(job, ENTER, n_parts)
    if until == BUSY or not wait(job, ENTER, n_parts):
        return
    task = claim(job, RANGES, n_ranges)
    while task >= 0:
        _learn(sgemm, work, task)
        done(job, RANGES)
        task = claim(job, RANGES, n_ranges)
    if not wait(job, RANGES, n_ranges):
        return
    task = claim(job, SETTLE, n_parts + 1)
    while task >= 0:
        _settle(sgemm, work, task)
        done(job, SETTLE)
        task = claim(job, SETTLE, n_parts + 1)
    if until == DONE:
        wait(job, SETTLE, n_parts + 1)


@kernel
def _learn(sgemm: int, work: Work, at: int) -> None:
    """Take a range through the layers and back."""
    sums, given = work.sums, (sgemm, work.first, work.hidden, work.logits, work.loss, work.wanted, work.of_x)
    own = Sums(sums.packed[at], sums.bias[at], sums.w[at], sums.both[at], sums.slots[at])
    clear(work.slots.rows, work.slots.ends, own.slots)
    learn(*given, own, work.bounds[at], work.bounds[at + 1])


@kernel
def _settle(sgemm: int, work: Work, task: int) -> None:
    """Do a task of the last stage."""
    parts, slots, sums, into, n = work.parts, work.slots, work.sums, work.into, len(work.parts)
    if len(slots.ends) > 1:
        if task == 0:
            enter_slots_backward(sgemm, slots, work.w_first, sums.slots, into.first)
            return
        task -= 1
    if task == n:
        add_weights(sums.packed, sums.bias, sums.w, into.packed, into.bias, into.first, work.columns)
        return
    weights = work.w_first, work.w_request, sums.both, into.first, into.request
    part_backward(sgemm, parts, n - 1 - task, *weights)
