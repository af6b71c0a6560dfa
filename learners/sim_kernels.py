"""Compiled passes of :mod:`learners.sim_extract`: cosines of a target with the entries of its request, and the largest of them.

Letters: as there; ``U`` distinct vectors.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from learners.lanes import dot
from learners.products8 import products8
from negative_queues.kernels import kernel

__all__ = ["EPSILON", "SAME", "extract_all", "extract_range", "normalised"]

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

SAME = 1e-5  # what rounding leaves between a vector and itself
EPSILON = 1e-12  # a zero vector has similarity 0 with everything, as in F.normalize


@kernel
def normalised(vectors: Floats, out: Floats) -> None:
    """Write rows of length 1 to ``out [U, D]``; a zero vector stays one."""
    for row in range(len(vectors)):
        scale = np.float32(1) / max(np.sqrt(dot(vectors[row], vectors[row])), np.float32(EPSILON))
        for d in range(vectors.shape[1]):
            out[row, d] = vectors[row, d] * scale


@kernel
def extract_all(
    target: Floats,
    now: Ints,
    target_offsets: Ints,
    sequence: Floats,
    past: Ints,
    offsets: Ints,
    n_bins: int,
    max_len: int,
    own_bin: bool,
    bins: Ints,
    positions: Ints,
    sims: Floats,
) -> None:
    """Do what :func:`extract_range` does for all requests, of rows of any length."""
    unit, last = np.empty_like(target), len(offsets) - 1
    normalised(target, unit)
    if sequence.ctypes.data == target.ctypes.data and sequence.shape == target.shape:
        other = unit
    else:
        other = np.empty_like(sequence)
        normalised(sequence, other)
    extract_range(
        unit, now, target_offsets, other, past, offsets, n_bins, max_len, own_bin, 0, last, bins, positions, sims
    )  # fmt: skip


@kernel
def extract_range(
    target: Floats,
    now: Ints,
    target_offsets: Ints,
    sequence: Floats,
    past: Ints,
    offsets: Ints,
    n_bins: int,
    max_len: int,
    own_bin: bool,
    first: int,
    last: int,
    bins: Ints,
    positions: Ints,
    sims: Floats,
) -> None:
    """Write the slots of the targets of requests ``first`` to ``last`` (exclusive).

    Args:
        target: rows of length 1, ``[U, D]``.
        now: which of them the targets are, ``[C]``.
        target_offsets: ``[R + 1]``.
        sequence: as the target, of the entries.
        past: which of them the entries are, ``[N]``.
        offsets: ``[R + 1]``.
        n_bins: as :func:`learners.sim_extract.sim_extract`, like the next two.
        max_len: see above.
        own_bin: see above.
        first: request.
        last: request.
        bins: ``[C, k]``, written, like the next two.
        positions: see above.
        sims: see above.
    """
    n_dims, longest = target.shape[1], 0
    for row in range(first, last):
        longest = max(longest, offsets[row + 1] - offsets[row])
    # One request's entries, newest first, transposed and filled up to whole eights: eight cosines at a time, each summed in the
    # same order, so equal entries get equal similarities to the last bit.
    entries = np.zeros((n_dims, (longest + 7) // 8 * 8), np.float32)
    cosine = np.empty(entries.shape[1], np.float32)
    for row in range(first, last):
        length = offsets[row + 1] - offsets[row]
        for back in range(length):
            source = past[offsets[row + 1] - 1 - back]
            for d in range(n_dims):
                entries[d, back] = sequence[source, d]
        for candidate in range(target_offsets[row], target_offsets[row + 1]):
            for at in range(0, length, 8):
                products8(target[now[candidate]], entries, at, cosine)
            _top_k(cosine[:length], n_bins, max_len, own_bin, bins[candidate], positions[candidate], sims[candidate])


@kernel
def _top_k(cosine: Floats, n_bins: int, max_len: int, own_bin: bool, bins: Ints, positions: Ints, sims: Floats) -> None:
    """Insert newest first and only what is greater, so a tie keeps the newer; a NaN is not greater and takes no slot."""
    k, filled = len(sims), 0
    for back in range(len(cosine)):
        value = cosine[back]
        if filled < k and value == value:
            slot = filled
            filled += 1
        elif filled == k and value > sims[k - 1]:
            slot = k - 1
        else:
            continue
        while slot > 0 and value > sims[slot - 1]:
            sims[slot], positions[slot] = sims[slot - 1], positions[slot - 1]
            slot -= 1
        sims[slot] = value
        positions[slot] = min(back + 1, max_len)
    half = np.float32(n_bins) * np.float32(0.5)
    for slot in range(filled):
        value = min(max(sims[slot], np.float32(-1)), np.float32(1))  # rounding passes 1 by an ulp or two
        sims[slot] = value
        number = np.int64((value + np.float32(1)) * half)
        bins[slot] = number if number < n_bins else n_bins - 1
        if own_bin and value > np.float32(1 - SAME):
            bins[slot] = n_bins + 1
    for slot in range(filled, k):
        bins[slot], positions[slot], sims[slot] = n_bins, 0, 0
