"""Adam for the dense layers: one compiled pass per parameter instead of torch's bookkeeping per step.

``m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2;  w -= rate (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)`` (Kingma and Ba
2015, Algorithm 1), as ``torch.optim.Adam``, whose names the state keeps.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from learners.flat import Flat
from negative_queues.kernels import kernel

__all__ = ["DenseAdam"]

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
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
        self._moments: dict[Tensor | Flat, _Moments] = {}

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    def restored(self) -> None:
        """Say that :attr:`state` is another one."""
        self._moments.clear()

    def step(self) -> None:
        """Take one step with the gradients that autograd has left."""
        self.step_with({p: p.grad.numpy() for p in self.parameters if p.grad is not None}, ())

    def step_with(self, gradients: Mapping[Tensor, Floats], flats: Iterable[Flat]) -> None:
        """Take one step.

        Args:
            gradients: by parameters.
            flats: whose gradients are in :attr:`learners.flat.Flat.gradient`.
        """
        for parameter, gradient in gradients.items():
            moments = self._moments.get(parameter)
            if moments is None:  # the first step, or the first after a restore
                moments = self._moments[parameter] = self._begun(parameter)
            _update(*moments, gradient.reshape(-1), self.rate)
        for flat in flats:
            moments = self._moments.get(flat)
            if moments is None:
                moments = self._moments[flat] = self._begun_flat(flat)
            _update(*moments, flat.gradient, self.rate)

    def _begun(self, parameter: Tensor) -> _Moments:
        state = self.state.get(parameter)
        if state is None:
            moments = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
            state = self.state[parameter] = {"step": torch.zeros(()), **moments}
        weight, first, second = (t.detach().numpy().reshape(-1) for t in (parameter, state["exp_avg"], state["exp_avg_sq"]))
        return _Moments(weight, first, second, state["step"].numpy().reshape(1), np.array([[0, len(weight)]]))

    def _begun_flat(self, flat: Flat) -> _Moments:
        first, second, steps = torch.zeros(flat.n), torch.zeros(flat.n), torch.zeros(len(flat.places))
        for at, (parameter, place) in enumerate(zip(flat.parameters, flat.places, strict=True)):
            own = {"step": steps[at], "exp_avg": first[place], "exp_avg_sq": second[place]}
            for name, value in self.state.get(parameter, {}).items():
                own[name].copy_(value.reshape(own[name].shape))
            self.state[parameter] = {name: v if name == "step" else v.view(parameter.shape) for name, v in own.items()}
            self._moments.pop(parameter, None)  # of a step by autograd: views of what the state was
        places = np.array([[place.start, place.stop] for place in flat.places])
        return _Moments(flat.values, first.numpy(), second.numpy(), steps.numpy(), places)


class _Moments(NamedTuple):
    """Parameters and their state as views, made once: on small layers making them costs more than the update."""

    weight: Floats
    """``[n]``."""
    first: Floats
    """``[n]``."""
    second: Floats
    """``[n]``."""
    steps: Floats
    """``[P]``."""
    places: Ints
    """Where each parameter begins and ends, ``[P, 2]``."""


@kernel(error_model="numpy")  # a check for division by zero would keep the loop out of vector code
def _update(weight: Floats, first: Floats, second: Floats, steps: Floats, places: Ints, grad: Floats, rate: float) -> None:
    for p in range(len(steps)):
        steps[p] += np.float32(1)
        step = np.float64(steps[p])
        size = np.float32(rate / (1 - FIRST**step))
        scale = np.float32(1 / np.sqrt(1 - SECOND**step))
        at, end = places[p, 0], places[p, 1]
        w, m, v, g = weight[at:end], first[at:end], second[at:end], grad[at:end]  # cut before, or it is not made vector code
        for i in range(len(w)):
            m[i] += np.float32(1 - FIRST) * (g[i] - m[i])
            v[i] = np.float32(SECOND) * v[i] + np.float32(1 - SECOND) * g[i] * g[i]
            w[i] -= size * m[i] / (np.sqrt(v[i]) * scale + np.float32(EPS))
