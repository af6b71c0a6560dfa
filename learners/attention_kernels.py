"""Pair by pair: what of :class:`learners.attention.TargetAttention` is no matrix product.

Legend: as :mod:`learners.attention`.
"""

from __future__ import annotations

import numba
import numpy as np
import numpy.typing as npt

from learners.batch import Offsets
from learners.lanes import dot

__all__ = ["meet", "part", "pull", "unweigh", "weigh"]

Floats = npt.NDArray[np.float32]


@numba.njit(cache=True, nogil=True)
def meet(
    q: Floats,
    k: Floats,
    of_query: Floats,
    of_key: Floats,
    targets: Offsets,
    entries: Offsets,
    origin: int,
    first: int,
    last: int,
    both: Floats,
    hidden: Floats,
) -> int:
    """Write ``q * k [P, T]`` and the sum of both halves of the hidden layer ``[P, W]`` of every pair of some requests; return
    how many there are. The halves begin with the request ``origin``."""
    pair, first_target, first_entry = 0, targets[origin], entries[origin]
    for r in range(first, last):
        for c in range(targets[r], targets[r + 1]):
            for h in range(entries[r], entries[r + 1]):
                for d in range(q.shape[1]):
                    both[pair, d] = q[c, d] * k[h, d]
                for w in range(of_key.shape[1]):
                    hidden[pair, w] = of_query[c - first_target, w] + of_key[h - first_entry, w]
                pair += 1
    return pair


@numba.njit(cache=True, nogil=True)
def weigh(
    k: Floats,
    hidden: Floats,
    slope: Floats,
    out: Floats,
    bias: np.float32,
    targets: Offsets,
    entries: Offsets,
    first: int,
    last: int,
    weight: Floats,
    interest: Floats,
) -> None:
    """Write the ``weight [P]`` of each pair and add it times the entry to the ``interest [C, T]``."""
    pair, leak = 0, slope[0]
    active = np.empty(len(out), np.float32)
    for r in range(first, last):
        for c in range(targets[r], targets[r + 1]):
            for h in range(entries[r], entries[r + 1]):
                for w in range(len(out)):
                    value = hidden[pair, w]
                    active[w] = max(value, np.float32(0)) + min(value, np.float32(0)) * leak
                share = dot(active, out) + bias
                weight[pair] = share
                for d in range(k.shape[1]):
                    interest[c, d] += share * k[h, d]
                pair += 1


@numba.njit(cache=True, nogil=True)
def pull(k: Floats, targets: Offsets, entries: Offsets, first: int, last: int, grad: Floats, pull: Floats) -> None:
    """Write the gradient by each pair's weight, ``[P]``."""
    pair = 0
    for r in range(first, last):
        for c in range(targets[r], targets[r + 1]):
            for h in range(entries[r], entries[r + 1]):
                pull[pair] = dot(grad[c], k[h])
                pair += 1


@numba.njit(cache=True, nogil=True)
def unweigh(
    hidden: Floats, slope: Floats, out: Floats, pull: Floats, of_slope: Floats, of_out: Floats, of_bias: Floats
) -> None:
    """Turn ``hidden [P, W]`` into its gradient; add those of the slope and of the last layer ``[W]`` and its bias."""
    width, leak = len(out), slope[0]
    active, leaky = np.zeros(width, np.float32), np.zeros(width, np.float32)
    for pair in range(len(hidden)):
        of_bias[0] += pull[pair]
        for w in range(width):
            active[w] += pull[pair] * max(hidden[pair, w], np.float32(0))
        for w in range(width):
            leaky[w] += pull[pair] * min(hidden[pair, w], np.float32(0))
        for w in range(width):
            hidden[pair, w] = pull[pair] * out[w] * (np.float32(1) if hidden[pair, w] > 0 else leak)
    for w in range(width):
        of_out[w] += active[w] + leak * leaky[w]
    of_slope[0] += dot(leaky, out)


@numba.njit(cache=True, nogil=True)
def part(
    q: Floats,
    k: Floats,
    targets: Offsets,
    entries: Offsets,
    origin: int,
    first: int,
    last: int,
    grad: Floats,
    weight: Floats,
    of_hidden: Floats,
    of_both: Floats,
    of_target: Floats,
    of_history: Floats,
    of_query: Floats,
    of_key: Floats,
) -> None:
    """Add what the pairs pass on to both sides, ``[C, T]`` and ``[H, T]``, and to their halves of the hidden layer, which begin
    with the request ``origin``."""
    pair, first_target, first_entry = 0, targets[origin], entries[origin]
    for r in range(first, last):
        for c in range(targets[r], targets[r + 1]):
            for h in range(entries[r], entries[r + 1]):
                for d in range(q.shape[1]):
                    of_target[c, d] += of_both[pair, d] * k[h, d]
                for d in range(q.shape[1]):
                    of_history[h, d] += of_both[pair, d] * q[c, d] + weight[pair] * grad[c, d]
                for w in range(of_key.shape[1]):
                    of_query[c - first_target, w] += of_hidden[pair, w]
                for w in range(of_key.shape[1]):
                    of_key[h - first_entry, w] += of_hidden[pair, w]
                pair += 1
