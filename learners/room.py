"""Memory for what a step makes and nobody keeps, used again by the next step.

An array of a megabyte that is given back at the end of a step goes back to the system, and the next step's has to be made of
pages anew: EGIN's sums took 300 page faults a step, a twentieth of its time and more with two threads.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from learners.flat import LINE

__all__ = ["Room"]

Floats = npt.NDArray[np.float32]


class Room:
    """One array that grows, for one step at a time."""

    def __init__(self) -> None:
        self._flat: Floats = np.zeros(0, np.float32)

    def arrays(self, shapes: Sequence[tuple[int, ...]]) -> list[Floats]:
        """Return arrays of these shapes, each from a cache line on, with whatever is in them: valid until the next call."""
        ends = list(itertools.accumulate((-(-math.prod(shape) // LINE) * LINE for shape in shapes), initial=0))
        if ends[-1] > len(self._flat):
            self._flat = torch.empty(ends[-1] * 5 // 4).numpy()
        starts = zip(ends, shapes, strict=False)
        return [self._flat[start : start + math.prod(shape)].reshape(shape) for start, shape in starts]
