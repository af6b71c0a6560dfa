"""AUGRU: a GRU whose update gate attention scales (Zhou et al., "Deep Interest Evolution Network", AAAI 2019, Eq. 13 to 16).

    u' = a u,    h = (1 - u') h + u' c

The public TensorFlow code scales the other way, ``u <- (1 - a) u`` with ``h = u h + (1 - u) c``: there an entry without
attention (``a = 0``) still moves the state, here it does not. This follows the paper.

Legend: ``C`` candidates, ``R`` requests, ``L`` longest history, ``d`` width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["AUGRU"]


class AUGRU(nn.Module):
    """Interest evolution: states of the history in, one state per candidate out.

    The gates' parts that depend on the history alone are computed once per request, those of the state per candidate. Weights
    are laid out as torch.nn.GRU's (reset, update, new); torch's update gate is the share that *stays*, 1 - u.

    Args:
        dim: ``d``, of inputs and state.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.input = nn.Linear(dim, 3 * dim)
        self.state = nn.Linear(dim, 3 * dim)

    def forward(self, history: Tensor, attention: Tensor, request_of: Tensor) -> Tensor:
        """Return the last state of each candidate, ``[C, d]``; 0 without attention on anything.

        Args:
            history: ``[R, L, d]``.
            attention: ``a`` of each candidate and place, ``[C, L]``, 0 where there is no entry: such a step changes nothing.
            request_of: int64 ``[C]``.
        """
        given = self.input(history)  # [R, L, 3 d]
        state = history.new_zeros(len(request_of), history.shape[2])
        for place in range(history.shape[1]):
            of_reset, of_update, of_new = given[:, place].index_select(0, request_of).chunk(3, 1)
            reset, update, new = self.state(state).chunk(3, 1)
            share = attention[:, place, None] * torch.sigmoid(of_update + update)
            candidate = torch.tanh(of_new + torch.sigmoid(of_reset + reset) * new)
            state = (1 - share) * state + share * candidate
        return state
