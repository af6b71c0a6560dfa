"""Matrices side by side."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from learners.tape import Tape, recording

__all__ = ["beside"]


def beside(parts: Sequence[Tensor]) -> Tensor:
    """Return the columns of some matrices ``[N, d]`` side by side, ``[N, sum of d]``."""
    out = torch.cat(list(parts), 1)
    tape = recording()
    if tape is not None:
        tape.then(partial(_back, tape, parts, out), out)
    return out


def _back(tape: Tape, parts: Sequence[Tensor], out: Tensor) -> None:
    grad = tape.take(out)
    if grad is None:
        return
    ends = itertools.accumulate((part.shape[1] for part in parts), initial=0)
    for part, (first, last) in zip(parts, itertools.pairwise(ends), strict=True):
        if tape.wants(part):
            tape.give(part, grad[:, first:last])
