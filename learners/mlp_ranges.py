"""A range of candidates through all layers of :class:`learners.request_mlp.RequestMLP` and back, as one compiled call.

Nothing is kept from one call to the next: what a batch makes in the layers is larger than a core's cache, and to fetch it back
costs as much as to make it anew.

Legend: ``C`` candidates, ``S`` rows of all shared parts, ``J`` shared parts, ``W`` width of a hidden layer (of the first where
nothing else is said), ``k`` slots, ``T`` rows of the tables of slot embeddings, ``V`` width of the dense columns.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from learners.click_loss import cross_entropy, of_click
from learners.lanes import dot
from learners.mlp_hidden import Hidden, linear, vectors
from learners.mlp_kernels import enter, enter_backward, normalise, normalise_backward
from learners.mlp_products import Halves, down, halves, room, up
from negative_queues.kernels import kernel

__all__ = ["BLOCK", "First", "Hidden", "Loss", "Sums", "learn", "score"]

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
BLOCK = 128
"""Candidates at a time: what is made of them on the way up stays in cache for the way down."""


class First(NamedTuple):
    """Input and weights of the first layer; see :func:`learners.mlp_kernels.enter`."""

    x: Floats
    """Dense columns, ``[C, V]``."""
    w: Floats
    """Their weights, ``[W, V]``."""
    bias: Floats
    """``[W]``."""
    both: Floats
    """What the rows of the shared parts contribute, ``[S, W]``."""
    taken: Ints
    """``[C, J]``."""
    contribution: Floats
    """What the rows of the slot tables contribute in each slot, ``[T k, W]``."""
    bins: Ints
    """``[C, k]``."""
    positions: Ints
    """``[C, k]``."""
    n_bins: int
    first_position: int


class Loss(NamedTuple):
    """Where the gradient by the logits comes from."""

    gradient: Floats
    """``[C]``: given, or written where there are labels: that of the click loss, ``w (p - y) / C``."""
    labels: Floats
    """``y [C]``; none where the gradient is given."""
    weights: Floats
    """``w [C]``."""
    scores: Floats = np.zeros(0, np.float32)
    """Where there are labels, ``p [C]`` is written here, if there is room."""
    losses: npt.NDArray[np.float64] = np.zeros(0)
    """Likewise the sum of ``w (log(1 + exp(z)) - y z)`` over each block of candidates, however they are cut into ranges."""


class Sums(NamedTuple):
    """Gradients of what candidates share, summed over a range of them."""

    packed: Floats
    """As :attr:`learners.mlp_hidden.Hidden.packed`."""
    bias: Floats
    """``[W]``."""
    w: Floats
    """``[W, V]``."""
    both: Floats
    """``[S, W]``."""
    slots: Floats
    """``[T k, W]``; added to, and rows that are not taken are not looked at."""


@kernel
def _scratch(widths: Ints, rows: int) -> Floats:
    """Return room for the standardised rows, the outputs and the gradients of all layers, flat.

    It begins at a cache line, as do its rows where a width allows: otherwise every vector lies in two of them.
    """
    return room(3 * rows * widths.sum()).view(np.float32).reshape(3, -1)


@kernel
def _of_layer(flat: Floats, widths: Ints, layer: int, rows: int) -> Floats:
    """Return the rows of a layer out of a flat row of scratch, ``[rows, W]``."""
    width = widths[layer]
    before = rows * widths[:layer].sum()
    return flat[before : before + rows * width].reshape(rows, width)


@kernel
def score(sgemm: int, entry: First, hidden: Hidden, logits: Floats, first: int, last: int) -> None:
    """Write ``logits [C]`` of the candidates ``first`` to ``last`` (exclusive)."""
    scratch = _scratch(hidden.widths, BLOCK)
    own = halves(hidden, entry.w, np.empty((len(entry.w), 0), np.float32), BLOCK)
    inverse = np.empty((len(hidden.widths), BLOCK), np.float32)
    for start in range(first, last, BLOCK):
        _forward(sgemm, own, entry, hidden, scratch, inverse, logits, start, min(start + BLOCK, last))


@kernel
def learn(
    sgemm: int,
    entry: First,
    hidden: Hidden,
    logits: Floats,
    loss: Loss,
    wanted: Floats,
    of_x: Floats,
    sums: Sums,
    first: int,
    last: int,
) -> None:
    """Do what :func:`score` does, and go back.

    Args:
        sgemm: of :func:`learners.blas.product`.
        entry: input.
        hidden: layers.
        logits: written, ``[C]``.
        loss: gradient by the logits.
        wanted: weights of those dense columns whose gradient is asked for, ``[W, v]``.
        of_x: takes that gradient, ``[C, v]``.
        sums: takes the others.
        first: first candidate.
        last: where they end.
    """
    scratch = _scratch(hidden.widths, BLOCK)
    own = halves(hidden, entry.w, wanted, BLOCK)
    inverse = np.empty((len(hidden.widths), BLOCK), np.float32)
    for array in (sums.packed, sums.bias):
        array[:] = 0
    for matrix in (sums.w, sums.both):
        matrix[:] = 0
    for start in range(first, last, BLOCK):
        end = min(start + BLOCK, last)
        _forward(sgemm, own, entry, hidden, scratch, inverse, logits, start, end)
        if len(loss.labels):
            _of_click(logits, loss, start, end)
        _backward(sgemm, own, entry, hidden, scratch, inverse, loss.gradient, wanted, of_x, sums, start, end)


@kernel
def _of_click(logits: Floats, loss: Loss, first: int, last: int) -> None:
    """Write what a block of candidates has of the click loss."""
    for c in range(first, last):
        p, loss.gradient[c] = of_click(logits[c], loss.labels[c], loss.weights[c], len(logits))
        if len(loss.scores):
            loss.scores[c] = p
    if len(loss.losses):
        total = 0.0
        for c in range(first, last):
            total += cross_entropy(logits[c], loss.labels[c], loss.weights[c])
        loss.losses[first // BLOCK] = total


@kernel
def _forward(
    sgemm: int,
    own: Halves | None,
    entry: First,
    hidden: Hidden,
    scratch: Floats,
    inverse: Floats,
    logits: Floats,
    first: int,
    last: int,
) -> None:
    packed, widths = hidden.packed, hidden.widths
    rows = last - first
    for layer in range(len(widths)):
        z, out = _of_layer(scratch[0], widths, layer, rows), _of_layer(scratch[1], widths, layer, rows)
        both = vectors(packed, widths, layer)
        gain, shift = both[0], both[1]  # unpacked as a whole they would no longer be known to lie in one piece
        if layer == 0:
            up(sgemm, own, 0, entry.x[first:last], entry.w, z)
            enter(
                z, entry.bias, entry.both, entry.taken[first:last], entry.contribution, entry.bins[first:last],
                entry.positions[first:last], entry.n_bins, entry.first_position, gain, shift, out, inverse[layer],
            )  # fmt: skip
        else:
            w, bias = linear(packed, widths, layer - 1)
            up(sgemm, own, layer, _of_layer(scratch[1], widths, layer - 1, rows), w, z)
            normalise(z, bias, gain, shift, out, inverse[layer])
        if layer == len(widths) - 1:
            w, bias = linear(packed, widths, layer)
            _leave(out, w[0], bias[0], logits[first:last])


@kernel
def _leave(out: Floats, w: Floats, bias: np.float32, logits: Floats) -> None:
    for c in range(len(out)):
        logits[c] = dot(out[c], w) + bias


@kernel
def _backward(
    sgemm: int,
    own: Halves | None,
    entry: First,
    hidden: Hidden,
    scratch: Floats,
    inverse: Floats,
    of_logits: Floats,
    wanted: Floats,
    of_x: Floats,
    sums: Sums,
    first: int,
    last: int,
) -> None:
    packed, widths = hidden.packed, hidden.widths
    rows, top = last - first, len(widths) - 1
    out, below = _of_layer(scratch[1], widths, top, rows), _of_layer(scratch[2], widths, top, rows)
    of_w, of_bias = linear(sums.packed, widths, top)
    _leave_backward(of_logits[first:last], out, linear(packed, widths, top)[0][0], below, of_w[0], of_bias)
    for layer in range(top, 0, -1):
        below, above = _of_layer(scratch[2], widths, layer - 1, rows), _of_layer(scratch[2], widths, layer, rows)
        z, out = _of_layer(scratch[0], widths, layer, rows), _of_layer(scratch[1], widths, layer, rows)
        of_w, of_bias = linear(sums.packed, widths, layer - 1)
        gain, of_vectors = vectors(packed, widths, layer)[0], vectors(sums.packed, widths, layer)
        normalise_backward(above, z, out, inverse[layer], gain, of_vectors, of_bias)
        w = linear(packed, widths, layer - 1)[0]
        down(sgemm, own, layer, above, _of_layer(scratch[1], widths, layer - 1, rows), w, of_w, below)
    grad, z, out = (
        _of_layer(scratch[2], widths, 0, rows), _of_layer(scratch[0], widths, 0, rows), _of_layer(scratch[1], widths, 0, rows),
    )  # fmt: skip
    enter_backward(
        grad, z, out, inverse[0], vectors(packed, widths, 0)[0], vectors(sums.packed, widths, 0), sums.bias,
        entry.taken[first:last], entry.bins[first:last], entry.positions[first:last], entry.n_bins, entry.first_position,
        sums.both, sums.slots,
    )  # fmt: skip
    down(sgemm, own, 0, grad, entry.x[first:last], wanted, sums.w, of_x[first:last])


@kernel
def _leave_backward(of_logits: Floats, out: Floats, w: Floats, grad: Floats, of_w: Floats, of_bias: Floats) -> None:
    for c in range(len(out)):
        pull = of_logits[c]
        of_bias[0] += pull
        for i in range(len(w)):
            of_w[i] += pull * out[c, i]
        for i in range(len(w)):
            grad[c, i] = pull * w[i]
