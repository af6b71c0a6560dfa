"""MomentumEncoder: the key encoder, which follows the query encoder slowly so that keys of different ages can be compared.

He et al. (MoCo), Eq. 2; SEMI, Eq. 9:  ``theta_k <- m theta_k + (1 - m) theta_q``.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from negative_queues.health import cosine

__all__ = ["MomentumEncoder"]


class MomentumEncoder(nn.Module):
    """A copy of an encoder that takes no gradient and moves with :meth:`update`.

    Floating buffers (running moments) follow like parameters, integer and bool buffers (counters) are copied: MoCo's code
    leaves buffers alone, so that the key encoder's normalisation has a life of its own. The copy stays in ``eval``: a key
    depends on its input alone, neither on dropout nor on its batch, and so can be encoded again to measure drift.

    Args:
        query: the encoder to follow; it is copied, not kept.
        momentum: ``m``, 0 to 1.

    Raises:
        ValueError: the momentum is out of range.

    >>> query = nn.Linear(2, 2)
    >>> keys = MomentumEncoder(query, 0.9)
    >>> before = keys.encoder.weight.clone()
    >>> with torch.no_grad(): _ = query.weight.add_(1.0)
    >>> keys.update(query)
    >>> torch.allclose(keys.encoder.weight, before + 0.1)
    True
    """

    def __init__(self, query: nn.Module, momentum: float = 0.999) -> None:
        super().__init__()
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum must be 0 to 1, got {momentum}; MoCo and CCL have 0.999")
        self.momentum = float(momentum)
        self.encoder = copy.deepcopy(query)
        self.encoder.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> MomentumEncoder:
        """Stay in evaluation mode, whatever the module around does."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, *inputs: Any) -> Tensor:
        """Return the keys of a batch, without a graph."""
        keys: Tensor = self.encoder(*inputs)
        return keys

    @torch.no_grad()
    def update(self, query: nn.Module) -> None:
        """Move one step towards ``query``, after its optimiser's step.

        Raises:
            ValueError: it has other parameters or buffers than the encoder copied; nothing has changed then.
        """
        mine, theirs = _tensors(self.encoder), _tensors(query)
        if {name: tensor.shape for name, tensor in mine.items()} != {name: tensor.shape for name, tensor in theirs.items()}:
            raise ValueError("update takes the query encoder that was copied: the names or shapes of its tensors differ")
        for name, tensor in mine.items():
            if tensor.is_floating_point():
                tensor.mul_(self.momentum).add_(theirs[name], alpha=1.0 - self.momentum)
            else:
                tensor.copy_(theirs[name])

    def drift(self, stored: Tensor, *inputs: Any) -> float:
        """Return the mean cosine between stored keys ``[n, D]`` and the keys of the same inputs now; 1 is no drift."""
        return cosine(stored, self(*inputs))

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """Return the encoder's parameters and buffers by name: views on the CPU, copies from elsewhere."""
        return {name: tensor.detach().cpu().numpy() for name, tensor in _tensors(self.encoder).items()}

    @torch.no_grad()
    def load_state(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Become exactly the encoder that returned ``state``.

        Raises:
            ValueError: a tensor is missing, unknown or of another shape; nothing has changed then.
        """
        mine = _tensors(self.encoder)
        shapes = {name: tuple(tensor.shape) for name, tensor in mine.items()}
        saved = {name: array.shape for name, array in state.items()}
        if shapes != saved:
            wrong = sorted(name for name in shapes | saved if shapes.get(name) != saved.get(name))
            raise ValueError(f"the saved key encoder differs in {wrong[:5]}; resume with the encoder of the saved run")
        for name, tensor in mine.items():
            tensor.copy_(torch.from_numpy(np.array(state[name])))


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return parameters and buffers by name, the shared ones once."""
    return dict(module.named_parameters()) | dict(module.named_buffers())
