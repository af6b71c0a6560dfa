"""Transformer blocks over the histories of requests: padded per request, masked, keys and values once per request.

Vaswani et al. 2017, as BST (Chen et al. 2019, Eq. 1 to 5) and SEMI (Lei et al. 2021, Eq. 2 and 3) use it. LayerNorm comes after
each residual sum. Projections have no bias (Eq. 2): one on the keys would fall out of the softmax.

Legend: ``R`` requests, ``L`` longest history, ``M`` queries of a request (its candidates, or its history), ``d`` width, ``h``
heads, ``e`` width of a head, ``N`` entries of a ragged column.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from learners.batch import Batch

__all__ = ["TIME_BUCKETS", "Block", "MultiHead", "Padding", "age_buckets", "ages", "time_buckets"]

TIME_BUCKETS = 32
OUT = -1.0e30  # finite: a row whose keys are all left out stays finite and is then set to 0


class Padding(NamedTuple):
    """Where the entries of a ragged column stand once rows are padded at the end."""

    n_rows: int
    longest: int
    places: Tensor
    """int64 ``[N]``: row x longest + place in the row."""
    mask: Tensor
    """bool ``[R, L]``: which places hold an entry."""

    @classmethod
    def of(cls, offsets: Tensor) -> Padding:
        """Return the padding of rows with bounds ``offsets`` int64 ``[R + 1]``; a row is at least one place long."""
        lengths = offsets.diff()
        longest = max(int(lengths.max()), 1) if len(lengths) else 1
        mask = torch.arange(longest, device=offsets.device) < lengths.unsqueeze(1)
        return cls(len(lengths), longest, mask.reshape(-1).nonzero().squeeze(1), mask)

    @classmethod
    def of_column(cls, batch: Batch, name: str) -> Padding:
        """Return the padding of a list column of a batch, made once."""
        return batch.block.once(("padding", name, str(batch.device)), lambda: cls.of(batch.offsets(name)))

    def pad(self, values: Tensor) -> Tensor:
        """Return ``[R, L, ...]`` of ``values [N, ...]``, 0 where there is no entry."""
        flat = values.new_zeros(self.n_rows * self.longest, *values.shape[1:])
        return flat.index_copy(0, self.places, values).view(self.n_rows, self.longest, *values.shape[1:])

    def unpad(self, padded: Tensor) -> Tensor:
        """Return ``[N, d]`` of ``padded [R, L, d]``."""
        return padded.reshape(-1, padded.shape[-1]).index_select(0, self.places)


def time_buckets(milliseconds: Tensor) -> Tensor:
    """Return the bucket of each time difference, int64: 0 below a second, then one per doubling, at most TIME_BUCKETS - 1."""
    seconds = milliseconds.clamp(min=0).double() / 1000.0
    return (1 + seconds.clamp(min=0.5).log2().floor()).long().clamp(0, TIME_BUCKETS - 1)


def ages(batch: Batch, sequence: str) -> Tensor:
    """Return the milliseconds from each entry of a sequence to its request, int64 ``[N]``, made once."""

    def make() -> Tensor:
        now = np.repeat(batch.ids("ts"), batch.ragged(f"{sequence}.ts").lengths)
        return batch.tensor(now - batch.ids(f"{sequence}.ts"))

    return batch.block.once(("ages", sequence, str(batch.device)), make)


def age_buckets(batch: Batch, sequence: str) -> Tensor:
    """Return the bucket of each entry's age, int64 ``[N]``, made once."""
    return batch.block.once(("age buckets", sequence, str(batch.device)), lambda: time_buckets(ages(batch, sequence)))


class MultiHead(nn.Module):
    """``Concat(head_1, ..., head_h) W_O``, ``head = softmax(Q W_Q (K W_K)^T / sqrt(e)) V W_V``.

    Args:
        dim: ``d``, of queries, keys and output.
        heads: ``h``; ``e`` is ``d / h`` rounded up, so that any width will do.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads, self.width = heads, -(-dim // heads)
        self.query, self.key, self.value = (nn.Linear(dim, heads * self.width, bias=False) for _ in range(3))
        self.out = nn.Linear(heads * self.width, dim)

    def forward(self, query: Tensor, keys: Tensor, mask: Tensor, *, own: bool = False) -> Tensor:
        """Return ``[R, M, d]``; without a key to look at, a query gets the output's bias alone.

        Args:
            query: ``[R, M, d]``; no query sees another one.
            keys: ``[R, L, d]``.
            mask: bool ``[R, L]``, which keys are there.
            own: whether each query is one more key, for itself alone: a target appended to its history.
        """
        q, k, v = self._split(self.query(query)), self._split(self.key(keys)), self._split(self.value(keys))
        there = mask[:, None, None, :]  # [R, 1, 1, L]
        scores = (q @ k.transpose(2, 3) / self.width**0.5).masked_fill(~there, OUT)  # [R, h, M, L]
        if not own:
            return self._join((scores.softmax(3) * there) @ v)
        itself = (q * self._split(self.key(query))).sum(3, keepdim=True) / self.width**0.5
        weights = torch.cat([scores, itself], 3).softmax(3)
        return self._join(weights[..., :-1] @ v + weights[..., -1:] * self._split(self.value(query)))

    def _split(self, rows: Tensor) -> Tensor:
        return rows.view(*rows.shape[:2], self.heads, self.width).transpose(1, 2)  # [R, h, M, e]

    def _join(self, heads: Tensor) -> Tensor:
        joined: Tensor = self.out(heads.transpose(1, 2).flatten(2))
        return joined


class Block(nn.Module):
    """``S' = LayerNorm(S + MultiHead(S))``, ``LayerNorm(S' + W_2 act(W_1 S'))`` (BST, Eq. 3 to 5).

    Args:
        dim: ``d``.
        heads: ``h``.
        hidden: width of the feed-forward network.
        slope: of the LeakyReLU below 0 (BST); 0 is a ReLU (SEMI).
    """

    def __init__(self, dim: int, heads: int = 8, hidden: int = 128, slope: float = 0.0) -> None:
        super().__init__()
        self.attention = MultiHead(dim, heads)
        self.wide, self.narrow = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.activation = nn.LeakyReLU(slope)
        self.first_norm, self.second_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)

    def forward(self, query: Tensor, keys: Tensor, mask: Tensor, *, own: bool = False) -> Tensor:
        """Return ``[R, M, d]``; arguments as of :class:`MultiHead`. Self-attention is ``block(x, x, mask)``."""
        between: Tensor = self.first_norm(query + self.attention(query, keys, mask, own=own))
        out: Tensor = self.second_norm(between + self.narrow(self.activation(self.wide(between))))
        return out
