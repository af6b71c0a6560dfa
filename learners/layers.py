"""Layers that models share; all of them ragged, none pads.

Legend: ``R`` requests, ``C`` candidates, ``H`` history entries, ``U`` distinct ids of the batch, ``D`` dim, ``P`` pairs of a
candidate and a history entry of its request.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding_bag

from learners.tables import Gathered


def pool(gathered: Gathered, use: int, offsets: Tensor, mode: str = "mean") -> Tensor:
    """Pool one ragged use of a table per request, ``[R, D]``; an empty row is 0.

    Args:
        gathered: vectors of the batch, ``[U, D]``.
        use: which of its key arrays, ``[H]``.
        offsets: row bounds, int64 ``[R + 1]``.
        mode: ``mean`` or ``sum``.
    """
    places = gathered.places[use]
    return embedding_bag(places, gathered.weight, offsets, mode=mode, include_last_offset=True)


def last_entry(gathered: Gathered, use: int, offsets: Tensor) -> Tensor:
    """Return the newest entry of one ragged use of a table per request, ``[R, D]``; an empty row is 0."""
    places = gathered.places[use]
    held = offsets.diff() > 0
    if not len(places):
        return gathered.weight.new_zeros(len(held), gathered.weight.shape[1])
    newest = gathered.weight.index_select(0, places.index_select(0, (offsets[1:] - 1).clamp(min=0)))
    return newest * held.unsqueeze(1)


def segment_sum(values: Tensor, segment: Tensor, n_segments: int) -> Tensor:
    """Add up the rows of ``values [P, D]`` by ``segment [P]``: ``[n_segments, D]``."""
    out = torch.zeros(n_segments, values.shape[1], dtype=values.dtype, device=values.device)
    return out.index_add_(0, segment, values)


class RequestMLP(nn.Module):
    """MLP over (candidate, request) inputs whose first layer treats the request's part once per request.

    Each hidden layer is ``ReLU(LayerNorm(.))``: normalisation within one candidate, so no score depends on another one, and it
    keeps up with a stream whose embeddings move fast. ``h_1 = W_c x_c + (W_r x_r)[request of c] + b`` equals a layer over the
    concatenation, at a tenth of the work for the request's part when ten candidates share it.

    Args:
        candidate_dim: width of the candidate's input.
        request_dim: width of the request's input; may be 0.
        hidden: widths of the hidden layers, one at least.
    """

    def __init__(self, candidate_dim: int, request_dim: int, hidden: Sequence[int] = (200, 80)) -> None:
        super().__init__()
        self.candidate = nn.Linear(candidate_dim, hidden[0])
        self.request = nn.Linear(request_dim, hidden[0], bias=False) if request_dim else None
        _as_one_layer(self.candidate, self.request)
        layers: list[nn.Module] = []
        for wide, narrow in itertools.pairwise(hidden):
            layers += [nn.LayerNorm(wide), nn.ReLU(), nn.Linear(wide, narrow)]
        self.rest = nn.Sequential(*layers, nn.LayerNorm(hidden[-1]), nn.ReLU(), nn.Linear(hidden[-1], 1))

    def forward(self, candidate: Tensor, request: Tensor, request_of: Tensor) -> Tensor:
        """Return logits ``[C]`` of candidate inputs ``[C, Dc]`` and request inputs ``[R, Dr]``."""
        first = self.candidate(candidate)
        if self.request is not None:
            first = first + self.request(request).index_select(0, request_of)
        out: Tensor = self.rest(first)
        return out.squeeze(1)


def _as_one_layer(candidate: nn.Linear, request: nn.Linear | None) -> None:
    """Initialise both halves as one layer over the concatenation would be (the bound falls with the full fan-in)."""
    fan_in = candidate.in_features + (request.in_features if request is not None else 0)
    bound = fan_in**-0.5
    for layer in (candidate, request):
        if layer is not None:
            nn.init.uniform_(layer.weight, -bound, bound)
    nn.init.uniform_(candidate.bias, -bound, bound)


class TargetAttention(nn.Module):
    """DIN's local activation unit (Zhou et al. 2018, section 4.3): sum over the history of ``a(k, q) k``.

    ``a`` is an MLP of ``[q, k, q - k, q * k]`` without softmax, so that the sum keeps the strength of the interest. Its first
    layer is taken apart: ``W_q q`` is computed per candidate, ``W_k k`` per history entry, only ``W_p (q * k)`` per pair.

    Args:
        dim: of targets and history entries.
        hidden: width of the unit's hidden layer.
    """

    def __init__(self, dim: int, hidden: int = 36) -> None:
        super().__init__()
        self.query = nn.Linear(dim, hidden)
        self.key = nn.Linear(dim, hidden, bias=False)
        self.product = nn.Linear(dim, hidden, bias=False)
        self.activation = nn.PReLU()
        self.out = nn.Linear(hidden, 1)

    def forward(self, target: Tensor, history: Tensor, candidate: Tensor, entry: Tensor) -> Tensor:
        """Return the interest per candidate ``[C, D]``; 0 where the history is empty.

        Args:
            target: ``[C, D]``.
            history: ``[H, D]``.
            candidate: candidate of each pair, int64 ``[P]``.
            entry: history entry of each pair, int64 ``[P]``.
        """
        q, k = target.index_select(0, candidate), history.index_select(0, entry)  # [P, D]
        hidden = self.query(target).index_select(0, candidate) + self.key(history).index_select(0, entry)
        weight = self.out(self.activation(hidden + self.product(q * k)))  # [P, 1]
        return segment_sum(weight * k, candidate, len(target))


class Standardise(nn.Module):
    """Floats -> standardised floats and missing flags, with running moments that only learning moves.

    The moments used for a batch are those before it, in training as in serving, so that a score depends on no other candidate
    (promise 5; no batch statistics). Values are clipped to +-5 deviations.

    Args:
        n: number of float features.
    """

    count: Tensor
    mean: Tensor
    square: Tensor

    def __init__(self, n: int) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(n, dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(n, dtype=torch.float64))
        self.register_buffer("square", torch.zeros(n, dtype=torch.float64))

    def forward(self, values: Tensor) -> Tensor:
        """Return ``[N, 2n]``: standardised values and flags of ``values [N, n]``; what is not finite is missing."""
        missing = ~values.isfinite()
        deviation = (self.square / self.count.clamp(min=1)).sqrt()
        scaled = (values.double() - self.mean) / torch.where(deviation > 0, deviation, torch.ones_like(deviation))
        scaled = torch.where(missing, torch.zeros_like(scaled), scaled.clamp(-5, 5))
        return torch.cat([scaled.float(), missing.float()], 1)

    @torch.no_grad()
    def observe(self, values: Tensor) -> None:
        """Add ``values [N, n]`` to the moments (Chan et al. 1979, merged batch by batch)."""
        known = values.isfinite()
        n = known.sum(0).double()
        x = torch.where(known, values, torch.zeros_like(values)).double()
        mean = x.sum(0) / n.clamp(min=1)
        square = torch.where(known, x - mean, torch.zeros_like(x)).square().sum(0)
        total = self.count + n
        delta = mean - self.mean
        share = n / total.clamp(min=1)
        self.square += square + delta.square() * self.count * share
        self.mean += delta * share
        self.count.copy_(total)
