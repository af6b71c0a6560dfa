"""Compiled passes of :class:`learners.request_mlp.RequestMLP`: everything of a layer that is no matrix product.

Row by row, by the walks of :mod:`learners.norm_rows`.

Legend: ``C`` candidates, ``S`` rows that several candidates share, ``J`` shared parts, ``W`` width of a hidden layer, ``k``
slots per candidate, ``T`` rows of the tables of slot embeddings (bins, then positions).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from learners.norm_rows import GROUP, Norm, Pulled, bulk, passed_on, pull_rows, standardise_rows
from learners.simd import flat, lanes, load, narrow, store, summed, wide
from negative_queues.kernels import kernel

__all__ = ["enter", "enter_backward", "normalise", "normalise_backward"]

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


class Held(NamedTuple):
    """Rows that candidates take, or their gradients: arrays that a caller holds for a compiled pass."""

    shared: Floats
    """``[S, W]``, all shared parts below each other."""
    chosen: Ints
    """The row of each shared part, ``[C, J]``."""
    slots: Floats
    """Contribution of each row of the slot tables in each slot, ``[T k, W]``, row ``t k + slot``."""
    bins: Ints
    """``[C, k]``; ``n_bins`` is an empty slot, behind which all are empty."""
    positions: Ints
    """``[C, k]``, 0 in an empty slot."""
    n_bins: int
    first_position: int
    """Row of position 0 among the ``T``; -1 where positions have no embedding."""
    base: Floats
    """The layer's bias and what the slots from ``i`` on contribute if they are empty, ``[k + 1, W]``."""
    places: Ints
    """Scratch: where in ``slots`` the rows of two candidates begin, behind each's where in ``base`` its row does."""
    means: Floats
    """Scratch for a group of rows, ``[GROUP, 2]``."""


class _Taken(NamedTuple):
    """The same, flat."""

    shared: Any
    chosen: Any
    slots: Any
    bins: Any
    positions: Any
    n_bins: int
    first_position: int
    base: Any
    places: Any
    n_shared: int
    k: int
    width: int


@kernel(inline="always")
def _held(shared: Floats, index: Ints, slots: Floats, bins: Ints, positions: Ints, n_bins: int, first_position: int) -> Held:
    k = bins.shape[1]
    base, places = np.zeros((k + 1, shared.shape[1]), np.float32), np.empty(2 * (2 * k + 1), np.int64)
    return Held(shared, index, slots, bins, positions, n_bins, first_position, base, places, np.empty((GROUP, 2), np.float32))


@kernel(forceinline=True)
def _taken(held: Held) -> _Taken:
    return _Taken(
        flat(held.shared), flat(held.chosen), flat(held.slots), flat(held.bins), flat(held.positions), held.n_bins,
        held.first_position, flat(held.base), flat(held.places), held.chosen.shape[1], held.bins.shape[1], held.base.shape[1],
    )  # fmt: skip


@kernel
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
        shared: as :class:`Held` has it, like the others before ``gain``.
        index: see above.
        slots: see above.
        bins: see above.
        positions: see above.
        n_bins: see above.
        first_position: see above.
        gain: as :func:`normalise` takes it, like the others after it.
    """
    held, k = _held(shared, index, slots, bins, positions, n_bins, first_position), bins.shape[1]
    for w in range(z.shape[1]):
        held.base[k, w] = layer_bias[w]
    for slot in range(k - 1, -1, -1):
        for w in range(z.shape[1]):
            held.base[slot, w] = held.base[slot + 1, w] + slots[n_bins * k + slot, w]
            if first_position >= 0:
                held.base[slot, w] += slots[first_position * k + slot, w]
    _enter(z, held, gain, bias, out, inverse)


@kernel
def _enter(z: Floats, held: Held, gain: Floats, bias: Floats, out: Floats, inverse: Floats) -> None:
    width = z.shape[1]
    whole, eights = bulk(width)
    taken, means = _taken(held), flat(held.means)
    norm, shift = Norm(flat(z), flat(out), flat(inverse), flat(gain)), flat(bias)
    for first in range(0, len(z), GROUP):
        end = min(first + GROUP, len(z))
        for c in range(first, end):
            n = _find(taken, c, 0)
            total = summed(
                _gather(norm.z, taken, c, n, 0, whole, wide()),
                _gather(norm.z, taken, c, n, whole, eights, narrow()),
                _gather(norm.z, taken, c, n, eights, width, np.float32(0)),
            )
            means[c - first] = total / np.float32(width)
        standardise_rows(norm, shift, first, end, width, means)


@kernel(forceinline=True)
def _find(taken: _Taken, c: int, start: int) -> int:
    """Write from ``start`` on where the rows of a candidate's filled slots begin, and behind them its row of ``base``; return
    where that stands."""
    k, slot, at = taken.k, 0, start
    while slot < k and taken.bins[c * k + slot] != taken.n_bins:
        taken.places[at] = (taken.bins[c * k + slot] * k + slot) * taken.width
        at += 1
        if taken.first_position >= 0:
            taken.places[at] = ((taken.first_position + taken.positions[c * k + slot]) * k + slot) * taken.width
            at += 1
        slot += 1
    taken.places[at] = slot * taken.width
    return at


@kernel(forceinline=True)
def _gather(z: Any, taken: _Taken, c: int, n: int, first: int, end: int, so_far: Any) -> Any:
    """Add to a row what its places hold, ``n`` of them in ``slots``; return its sum by lanes."""
    at, of = c * taken.width, c * taken.n_shared
    for w in range(first, end, lanes(so_far)):
        value = load(z, at + w, so_far)
        for j in range(of, of + taken.n_shared):
            value = value + load(taken.shared, taken.chosen[j] * taken.width + w, so_far)
        for i in range(n):
            value = value + load(taken.slots, taken.places[i] + w, so_far)
        value = value + load(taken.base, taken.places[n] + w, so_far)
        store(z, at + w, value)
        so_far = so_far + value
    return so_far


@kernel
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
    k, of = bins.shape[1], np.zeros((2, z.shape[1]), np.float32)
    held = _held(grad_shared, index, grad_slots, bins, positions, n_bins, first_position)
    _enter_backward(grad, z, out, inverse, gain, of, held)
    for slot in range(k):
        for w in range(z.shape[1]):
            if slot:
                held.base[slot, w] += held.base[slot - 1, w]
            grad_slots[n_bins * k + slot, w] += held.base[slot, w]
            if first_position >= 0:
                grad_slots[first_position * k + slot, w] += held.base[slot, w]
    for w in range(z.shape[1]):
        sums[0, w] += of[0, w]
        sums[1, w] += of[1, w]
        sum_of_all[w] += held.base[k, w] + (held.base[k - 1, w] if k else np.float32(0))


@kernel
def _enter_backward(grad: Floats, z: Floats, out: Floats, inverse: Floats, gain: Floats, of: Floats, held: Held) -> None:
    width = z.shape[1]
    whole, eights = bulk(width)
    taken, pulled, sums = _taken(held), flat(held.means), flat(of)
    norm, grads = Norm(flat(z), flat(out), flat(inverse), flat(gain)), flat(grad)
    for first in range(0, len(z), GROUP):
        end = min(first + GROUP, len(z))
        pull_rows(norm, grads, first, end, width, sums, pulled)
        for c in range(first, end, 2):
            at, two = 2 * (c - first), c + 1 < end
            one = Pulled(pulled[at], pulled[at + 1], norm.inverse[c])
            other = Pulled(pulled[at + 2], pulled[at + 3], norm.inverse[c + 1]) if two else one
            n = _find(taken, c, 0)
            m = _find(taken, c + 1, n + 1) if two else 0
            _scatter(norm, grads, taken, c, (n, m), (one, other), 0, whole, wide())
            _scatter(norm, grads, taken, c, (n, m), (one, other), whole, eights, narrow())
            _scatter(norm, grads, taken, c, (n, m), (one, other), eights, width, np.float32(0))


@kernel(forceinline=True)
def _scatter(
    norm: Norm,
    grad: Any,
    taken: _Taken,
    c: int,
    ends: tuple[int, int],
    pulled: tuple[Pulled, Pulled],
    first: int,
    end: int,
    like: Any,
) -> None:
    """Write the gradients by ``z`` of one candidate, or of two if ``ends[1]`` is not 0; add them to the rows that they took."""
    (n, m), width = ends, taken.width
    for w in range(first, end, lanes(like)):
        pull = passed_on(norm, grad, c * width, w, pulled[0], like)
        _add(taken, c, 0, n, w, pull)
        base = load(taken.base, taken.places[n] + w, like) + pull
        if m:
            if taken.places[n] != taken.places[m]:
                store(taken.base, taken.places[n] + w, base)
                base = load(taken.base, taken.places[m] + w, like)
            pull = passed_on(norm, grad, (c + 1) * width, w, pulled[1], like)
            _add(taken, c + 1, n + 1, m, w, pull)
            store(taken.base, taken.places[m] + w, base + pull)
        else:
            store(taken.base, taken.places[n] + w, base)


@kernel(forceinline=True)
def _add(taken: _Taken, c: int, start: int, end: int, w: int, pull: Any) -> None:
    """Add to the shared rows of a candidate, and to those of its filled slots, whose places stand from ``start`` to ``end``."""
    for j in range(c * taken.n_shared, (c + 1) * taken.n_shared):
        place = taken.chosen[j] * taken.width + w
        store(taken.shared, place, load(taken.shared, place, pull) + pull)
    for i in range(start, end):
        store(taken.slots, taken.places[i] + w, load(taken.slots, taken.places[i] + w, pull) + pull)


@kernel(inline="always")
def normalise(z: Floats, layer_bias: Floats, gain: Floats, bias: Floats, out: Floats, inverse: Floats) -> None:
    """Write ``ReLU(LayerNorm(z + layer_bias))`` to ``out [C, W]``; ``z`` becomes its standardised self, ``inverse [C]`` 1 /
    deviation."""
    none = np.empty((len(z), 0), np.int64)
    n_bins, first_position = none.shape[1], none.shape[1] - 1  # 0 and -1: for literals everything would be compiled once more
    enter(z, layer_bias, z[:0], none, z[:0], none, none, n_bins, first_position, gain, bias, out, inverse)


@kernel(inline="always")
def normalise_backward(
    grad: Floats, z: Floats, out: Floats, inverse: Floats, gain: Floats, sums: Floats, sum_of_all: Floats
) -> None:
    """Turn ``grad [C, W]`` by ``out`` into that by the input of :func:`normalise`, in place.

    To ``sums [2, W]`` are added the gradients by gain and by bias, to ``sum_of_all [W]`` the sum of the result (by the layer's
    bias).
    """
    none = np.empty((len(z), 0), np.int64)
    n_bins, first_position = none.shape[1], none.shape[1] - 1  # 0 and -1: for literals everything would be compiled once more
    enter_backward(grad, z, out, inverse, gain, sums, sum_of_all, none, none, none, n_bins, first_position, z[:0], z[:0])
