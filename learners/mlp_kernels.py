"""Compiled passes of :class:`learners.request_mlp.RequestMLP`: everything of a layer that is no matrix product, row by row.

Legend: ``C`` candidates, ``S`` rows that several candidates share, ``J`` shared parts, ``W`` width of a hidden layer, ``k``
slots per candidate, ``T`` rows of the tables of slot embeddings (bins, then positions).

Sums over a row are those of :mod:`learners.lanes`; NaN stays NaN.
"""

from __future__ import annotations

import numba
import numpy as np
import numpy.typing as npt

from learners.lanes import dot, total

__all__ = ["enter", "enter_backward", "normalise", "normalise_backward"]

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
EPS = np.float32(1e-5)  # of torch's LayerNorm


@numba.njit(cache=True, nogil=True)
def enter(
    z: Floats,
    layer_bias: Floats,
    shared: Floats,
    index: Ints,
    slots: Floats,
    bins: Ints,
    positions: Ints,
    n_bins: int,
    first_position: int,
    gain: Floats,
    bias: Floats,
    out: Floats,
    inverse: Floats,
) -> None:
    """Add to ``z [C, W]`` what the shared parts and the slots contribute, then do what :func:`normalise` does.

    Args:
        z: the dense part's share, in place.
        layer_bias: ``[W]``.
        shared: ``[S, W]``, all shared parts below each other.
        index: the row of each shared part, ``[C, J]``.
        slots: contribution of each row of the slot tables in each slot, ``[T k, W]``, row ``t k + slot``.
        bins: ``[C, k]``; ``n_bins`` is an empty slot, behind which all are empty.
        positions: ``[C, k]``, 0 in an empty slot.
        n_bins: see above.
        first_position: row of position 0 among the ``T``; -1 where positions have no embedding.
        gain: as :func:`normalise` takes it, like the others after it.
    """
    k, width = bins.shape[1], z.shape[1]
    empty = np.zeros((k + 1, width), np.float32)  # what the slots from here on add where they are empty
    for slot in range(k - 1, -1, -1):
        for w in range(width):
            empty[slot, w] = empty[slot + 1, w] + slots[n_bins * k + slot, w]
            if first_position >= 0:
                empty[slot, w] += slots[first_position * k + slot, w]
    for c in range(len(z)):
        for j in range(index.shape[1]):
            row = index[c, j]
            for w in range(width):
                z[c, w] += shared[row, w]
        filled = 0
        while filled < k and bins[c, filled] != n_bins:
            row = bins[c, filled] * k + filled
            if first_position >= 0:
                place = (first_position + positions[c, filled]) * k + filled
                for w in range(width):
                    z[c, w] += slots[row, w] + slots[place, w]
            else:
                for w in range(width):
                    z[c, w] += slots[row, w]
            filled += 1
        if k:
            for w in range(width):
                z[c, w] += empty[filled, w]
        _normalise_row(z, layer_bias, gain, bias, out, inverse, c)


@numba.njit(cache=True, nogil=True)
def enter_backward(
    grad: Floats,
    z: Floats,
    out: Floats,
    inverse: Floats,
    gain: Floats,
    sums: Floats,
    sum_of_all: Floats,
    index: Ints,
    bins: Ints,
    positions: Ints,
    n_bins: int,
    first_position: int,
    grad_shared: Floats,
    grad_slots: Floats,
) -> None:
    """Do what :func:`normalise_backward` does, then add ``grad [C, W]`` to the rows that :func:`enter` took.

    It is added to what ``grad_shared`` and ``grad_slots`` hold, too.
    """
    k, width = bins.shape[1], grad.shape[1]
    empty = np.zeros((k + 1, width), np.float32)
    g, of = np.empty(width, np.float32), np.zeros((3, width), np.float32)
    for c in range(len(grad)):
        for w in range(width):
            g[w] = grad[c, w] if out[c, w] > 0 else np.float32(0)
        _row_backward(g, grad, z, inverse, gain, of, c)
        for j in range(index.shape[1]):
            row = index[c, j]
            for w in range(width):
                grad_shared[row, w] += grad[c, w]
        filled = 0
        while filled < k and bins[c, filled] != n_bins:
            row = bins[c, filled] * k + filled
            for w in range(width):
                grad_slots[row, w] += grad[c, w]
            if first_position >= 0:
                place = (first_position + positions[c, filled]) * k + filled
                for w in range(width):
                    grad_slots[place, w] += grad[c, w]
            filled += 1
        if k:
            for w in range(width):
                empty[filled, w] += grad[c, w]
    for slot in range(k):
        for w in range(width):
            if slot:
                empty[slot, w] += empty[slot - 1, w]
            grad_slots[n_bins * k + slot, w] += empty[slot, w]
            if first_position >= 0:
                grad_slots[first_position * k + slot, w] += empty[slot, w]
    for w in range(width):
        sums[0, w] += of[0, w]
        sums[1, w] += of[1, w]
        sum_of_all[w] += of[2, w]


@numba.njit(cache=True, nogil=True)
def normalise(z: Floats, layer_bias: Floats, gain: Floats, bias: Floats, out: Floats, inverse: Floats) -> None:
    """Write ``ReLU(LayerNorm(z + layer_bias))`` to ``out [C, W]``; ``z`` becomes its standardised self, ``inverse [C]`` 1 /
    deviation."""
    for c in range(len(z)):
        _normalise_row(z, layer_bias, gain, bias, out, inverse, c)


@numba.njit(cache=True, nogil=True, inline="always")
def _normalise_row(z: Floats, layer_bias: Floats, gain: Floats, bias: Floats, out: Floats, inverse: Floats, c: int) -> None:
    width, row = z.shape[1], z[c]
    for w in range(width):
        z[c, w] += layer_bias[w]
    mean = total(row) / np.float32(width)
    for w in range(width):
        z[c, w] -= mean
    scale = np.float32(1) / np.sqrt(dot(row, row) / np.float32(width) + EPS)
    inverse[c] = scale
    for w in range(width):
        z[c, w] *= scale
        out[c, w] = max(z[c, w] * gain[w] + bias[w], np.float32(0))


@numba.njit(cache=True, nogil=True)
def normalise_backward(
    grad: Floats, z: Floats, out: Floats, inverse: Floats, gain: Floats, sums: Floats, sum_of_all: Floats
) -> None:
    """Turn ``grad [C, W]`` by ``out`` into that by the input of :func:`normalise`, in place.

    To ``sums [2, W]`` are added the gradients by gain and by bias, to ``sum_of_all [W]`` the sum of the result (by the layer's
    bias).
    """
    width = z.shape[1]
    g, of = np.empty(width, np.float32), np.zeros((3, width), np.float32)
    for c in range(len(z)):
        for w in range(width):
            g[w] = grad[c, w] if out[c, w] > 0 else np.float32(0)
        _row_backward(g, grad, z, inverse, gain, of, c)
    for w in range(width):
        sums[0, w] += of[0, w]
        sums[1, w] += of[1, w]
        sum_of_all[w] += of[2, w]


@numba.njit(cache=True, nogil=True, inline="always")
def _row_backward(g: Floats, grad: Floats, z: Floats, inverse: Floats, gain: Floats, of: Floats, c: int) -> None:
    """Write the gradient of row ``c`` from ``g [W]``, that by the normalised row; add to the sums ``of [3, W]``.

    One short loop per quantity, and a row of scratch: loops that write to several arrays at once are not made vector code.
    """
    width = z.shape[1]
    for w in range(width):
        of[0, w] += g[w] * z[c, w]
    for w in range(width):
        of[1, w] += g[w]
    for w in range(width):
        g[w] *= gain[w]
    mean = total(g) / np.float32(width)
    along = dot(g, z[c]) / np.float32(width)
    scale = inverse[c]
    for w in range(width):
        g[w] = (g[w] - mean - z[c, w] * along) * scale
        grad[c, w] = g[w]
    for w in range(width):
        of[2, w] += g[w]
