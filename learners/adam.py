"""Adam for the dense layers: one compiled pass per parameter instead of torch's bookkeeping per step.

``m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2;  w -= rate (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)`` (Kingma and Ba
2015, Algorithm 1), as ``torch.optim.Adam``, whose names the state keeps.
"""

from __future__ import annotations

from collections.abc import Iterable

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

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    def step(self) -> None:
        """Take one step with the gradients that are there."""
        for parameter in self.parameters:
            grad = parameter.grad
            if grad is None:
                continue
            state = self.state.get(parameter)
            if state is None:
                first, second = torch.zeros_like(parameter), torch.zeros_like(parameter)
                state = self.state[parameter] = {"step": torch.zeros(()), "exp_avg": first, "exp_avg_sq": second}
            _update(
                _flat(parameter), _flat(grad.contiguous()), _flat(state["exp_avg"]), _flat(state["exp_avg_sq"]),
                state["step"].numpy(), self.rate,
            )  # fmt: skip


def _flat(tensor: Tensor) -> Floats:
    flat: Floats = tensor.detach().numpy().reshape(-1)
    return flat


@numba.njit(cache=True, nogil=True)
def _update(weight: Floats, grad: Floats, first: Floats, second: Floats, steps: Floats, rate: float) -> None:
    steps[()] += np.float32(1)
    step = np.float64(steps[()])
    size = np.float32(rate / (1 - FIRST**step))
    scale = np.float32(1 / np.sqrt(1 - SECOND**step))
    for i in range(len(weight)):
        first[i] += np.float32(1 - FIRST) * (grad[i] - first[i])
        second[i] = np.float32(SECOND) * second[i] + np.float32(1 - SECOND) * grad[i] * grad[i]
        weight[i] -= size * first[i] / (np.sqrt(second[i]) * scale + np.float32(EPS))
