"""Parameters side by side in one array, so that a kernel takes them, and an optimiser moves them, as one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

__all__ = ["Flat"]

Floats = npt.NDArray[np.float32]
LINE = 16
"""Floats of a cache line: the bits of a product depend on where its factors begin."""


class Flat:
    """Some parameters as views of one array, and an array of the same shape for their gradients.

    It holds while nobody gives a parameter other memory, as a move to another device does.

    Args:
        groups: within a group parameters follow each other without a gap; a group begins at a cache line.
    """

    def __init__(self, groups: Sequence[Sequence[nn.Parameter]]) -> None:
        self.parameters = [parameter for group in groups for parameter in group]
        self.places: list[slice] = []
        """Of each parameter in the array."""
        at = 0
        for group in groups:
            at = -(-at // LINE) * LINE
            for parameter in group:
                self.places.append(slice(at, at + parameter.numel()))
                at += parameter.numel()
        self.n = at
        values = torch.zeros(at)
        for parameter, place in zip(self.parameters, self.places, strict=True):
            values[place] = parameter.detach().reshape(-1)
            parameter.data = values[place].view(parameter.shape)
        self.values: Floats = values.numpy()
        self.gradient: Floats = torch.zeros(at).numpy()
        """Written by who goes back, once a step."""
        self._start = values.data_ptr()

    def views(self, array: Floats) -> list[Floats]:
        """Return the parts of an array ``[n]`` as the parameters are shaped."""
        return [array[at].reshape(tuple(p.shape)) for p, at in zip(self.parameters, self.places, strict=True)]

    def holds(self) -> bool:
        """Whether the parameters are views of the array still; by the first one, since all of a module's move together."""
        return self.parameters[0].data_ptr() == self._start
