"""Tape: how a step goes back on the CPU without autograd.

A step is a few dozen short compiled passes. Through autograd each costs a node, two hand-overs between Python and C++ and a
tensor per gradient, together more than most of them compute. Here an operation computes, and says what is to be called on the
way back; gradients are arrays, summed where several operations give one.

An operation that does not know of the tape loses its gradient without a word, so a network says that all of its operations do
(:attr:`learners.network.ClickNetwork.on_tape`), and tests hold what it learns against autograd's.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from learners.flat import Flat

__all__ = ["Tape", "recording"]

Floats = npt.NDArray[np.float32]
_here = threading.local()
"""``tape``: the one of this thread, inside its ``with``."""


def recording() -> Tape | None:
    """Return the tape that this thread records on, None outside of one."""
    found: Tape | None = getattr(_here, "tape", None)
    return found


class Tape:
    """What a step has to call on its way back; inside its ``with`` operations of the thread record on it."""

    __slots__ = ("_back", "_grad_was", "_gradients", "_wanted", "flats", "parameters")

    def __init__(self) -> None:
        self._back: list[Callable[[], None]] = []
        self._wanted: dict[
            int, Tensor
        ] = {}  # the tensors themselves, so that no other one gets the address of one that is gone
        self._gradients: dict[int, tuple[Tensor, Floats]] = {}
        self.parameters: dict[Tensor, Floats] = {}
        """Gradients by parameters, once :meth:`back` has ended."""
        self.flats: list[Flat] = []
        """Parameters whose gradients are in :attr:`learners.flat.Flat.gradient` then."""

    def __enter__(self) -> Tape:
        if recording() is not None:
            raise RuntimeError("this thread records on a tape already")
        self._grad_was = torch.is_grad_enabled()
        torch.set_grad_enabled(False)
        _here.tape = self
        return self

    def __exit__(self, *raised: object) -> None:
        _here.tape = None
        torch.set_grad_enabled(self._grad_was)
        self._back.clear()  # after an error: what is recorded holds the tape, and with it all that the step has made

    def then(self, back: Callable[[], None], *of: Tensor) -> None:
        """Have ``back`` called on the way back, before what was recorded earlier.

        Args:
            back: takes the gradients by what the operation has made, and gives those by what it made it of.
            of: what it has made.
        """
        self._back.append(back)
        for value in of:
            self._wanted[id(value)] = value

    def wants(self, value: Tensor) -> bool:
        """Whether a gradient by a value leads anywhere: an operation made it, or it is a parameter."""
        return id(value) in self._wanted or isinstance(value, nn.Parameter)

    def give(self, value: Tensor, gradient: Floats) -> None:
        """Add to the gradient by a value or a parameter. The array is the tape's from here on."""
        if isinstance(value, nn.Parameter):
            self._give_parameter(value, gradient)
            return
        found = self._gradients.get(id(value))
        if found is None:
            self._gradients[id(value)] = value, gradient
        else:
            np.add(found[1], gradient, out=found[1])

    def sums(self, value: Tensor) -> Floats:
        """Return the array in which the gradient by a value is summed, for an operation to add to; zeros if nobody has."""
        found = self._gradients.get(id(value))
        if found is None:
            found = self._gradients[id(value)] = value, torch.zeros(value.shape).numpy()
        return found[1]

    def take(self, value: Tensor) -> Floats | None:
        """Return the gradient by a value and forget it; None where nobody gave one."""
        found = self._gradients.pop(id(value), None)
        return None if found is None else found[1]

    def _give_parameter(self, parameter: Tensor, gradient: Floats) -> None:
        found = self.parameters.get(parameter)
        if found is None:
            self.parameters[parameter] = gradient
        else:
            np.add(found, gradient, out=found)

    def back(self) -> None:
        """Call what was recorded, the last one first."""
        while self._back:
            self._back.pop()()
