"""Adam for the dense layers: one compiled pass per parameter instead of torch's bookkeeping per step.

``m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2;  w -= rate (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)`` (Kingma and Ba
2015, Algorithm 1), as ``torch.optim.Adam``, whose names the state keeps.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numba
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

__all__ = ["DenseAdam"]

Floats = npt.NDArray[np.float32]
FIRST, SECOND, EPS = 0.9, 0.999, 1e-8


class DenseAdam:
    """Adam over float32 parameters on the CPU.

    Args:
        parameters: updated in place.
        rate: learning rate.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], rate: float) -> None:
        self.parameters = list(parameters)
        self.rate = rate
        self.state: dict[Tensor, dict[str, Tensor]] = {}
        """Per parameter that has had a gradient: ``step``, ``exp_avg``, ``exp_avg_sq``."""
        self._flat: list[_Flat | None] = [None] * len(self.parameters)

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    def restored(self) -> None:
        """Say that :attr:`state` is another one."""
        self._flat = [None] * len(self.parameters)

    def step(self) -> None:
        """Take one step with the gradients that are there."""
        for at, parameter in enumerate(self.parameters):
            grad = parameter.grad
            if grad is None:
                continue
            flat = self._flat[at]
            if flat is None:  # the first step, or the first after a restore
                flat = self._flat[at] = self._flattened(parameter)
            _update(flat.weight, flat.first, flat.second, flat.steps, grad.numpy().reshape(-1), self.rate)

    def _flattened(self, parameter: nn.Parameter) -> _Flat:
        state = self.state.get(parameter)
        if state is None:
            moments = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
            state = self.state[parameter] = {"step": torch.zeros(()), **moments}
        weight, first, second = (t.detach().numpy().reshape(-1) for t in (parameter, state["exp_avg"], state["exp_avg_sq"]))
        return _Flat(weight, first, second, state["step"].numpy())


class _Flat(NamedTuple):
    """A parameter and its state as views ``[n]``, made once: on small layers making them costs more than the update."""

    weight: Floats
    first: Floats
    second: Floats
    steps: Floats


@numba.njit(cache=True, nogil=True, error_model="numpy")  # a check for division by zero would keep the loop out of vector code
def _update(weight: Floats, first: Floats, second: Floats, steps: Floats, grad: Floats, rate: float) -> None:
    steps[()] += np.float32(1)
    step = np.float64(steps[()])
    size = np.float32(rate / (1 - FIRST**step))
    scale = np.float32(1 / np.sqrt(1 - SECOND**step))
    for i in range(len(weight)):
        first[i] += np.float32(1 - FIRST) * (grad[i] - first[i])
        second[i] = np.float32(SECOND) * second[i] + np.float32(1 - SECOND) * grad[i] * grad[i]
        weight[i] -= size * first[i] / (np.sqrt(second[i]) * scale + np.float32(EPS))
