"""Forward and backward of :class:`learners.attention.TargetAttention` on the CPU, by hand and by ranges of requests.

A range goes forward in one compiled call, and back in another one (:mod:`learners.attention_ranges`); ranges as many at once as
there are threads (:mod:`learners.threads`). What a range finds of weights and rows is added up in the order of ranges and of
requests, whoever took which.

Legend: as :mod:`learners.attention_kernels`.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import numpy.typing as npt
import torch

from learners import attention_ranges
from learners.attention_plan import planned
from learners.attention_ranges import Given
from learners.blas import SGEMM
from learners.threads import team

__all__ = ["KEPT", "LEAST", "Pass"]

Floats = npt.NDArray[np.float32]
LEAST = 1024
"""Pairs of a thread, at least."""
KEPT = 1 << 20
"""Numbers of the hidden layers that are kept for the way back, at most: more of them would come from memory, which takes longer
than to make them anew."""


class Pass:
    """One way forward, and back at most once.

    Args:
        given: see there.
        width: of the unit's hidden layer.
        learn: whether :meth:`back` is to come.

    Attributes:
        interest: the sum of the weighed entries, and its product with the target, ``[C, 2 T]``; 0 where the history is empty.
    """

    def __init__(self, given: Given, width: int, *, learn: bool) -> None:
        self._given, self._goes_back = given, learn
        dim = sum(columns.targets.shape[1] for columns in given.columns)
        of_unit = dim, width, len(given.weights)
        with team() as threads:
            plan = self._plan = planned(given.targets, given.entries, *of_unit, threads.n, LEAST, KEPT, learn)
            self._n_ranges, size = plan[:2].tolist()
            # torch's memory begins at a cache line, on which the bits of products depend; NumPy's does not
            self._made, self.interest = torch.empty(size).numpy(), torch.empty(int(given.targets[-1]), 2 * dim)
            self._work = SGEMM, given, plan, width, self._made, self.interest.numpy()
            threads.run([partial(attention_ranges.forward, *self._work, own) for own in range(self._n_ranges)])

    def back(self, grad: Floats, of_rows: tuple[tuple[Floats, Floats], ...], of_weights: Floats) -> None:
        """Go back, once.

        Args:
            grad: by :attr:`interest`, ``[C, 2 T]``; a row lies in one piece.
            of_rows: gradients of the matrices of the columns, of targets and of entries, added to; one array where they are the
                same.
            of_weights: written, as :attr:`learners.attention_ranges.Given.weights`.

        Raises:
            RuntimeError: it was called before, or is not to come: what it needs is not there.
        """
        if not self._goes_back:
            raise RuntimeError("an attention pass goes back once, where it was made to")
        self._goes_back = False
        with team() as threads:
            threads.run([partial(attention_ranges.backward, *self._work, own, grad) for own in range(self._n_ranges)])
        attention_ranges.settle(self._given, self._plan, self._made, of_rows, of_weights)
