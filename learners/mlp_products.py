"""The products of :class:`learners.request_mlp.RequestMLP`'s layers, in float32 or in bfloat16, in kernels.

In bfloat16 a range of candidates rounds the weights once and its own rows as it comes to them; sums stay float32, and so does
all that is no product: :mod:`learners.products16` says what they are.

Legend: ``B`` candidates of a block, ``W`` width of a hidden layer, ``D`` width of what it multiplies: of the first the dense
columns', of any other the ``W`` below.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import extending
from numba.core import types

from learners.blas import product
from learners.flat import LINE
from learners.halves import Words, by_pairs, by_row, by_row_and_pairs, padded, row_words, turned
from learners.mlp_hidden import Hidden, linear
from learners.products16 import product16
from negative_queues.kernels import kernel

# Numba's own tools are written without types.
_extending: Any = extending
_types: Any = types

__all__ = ["Halves", "down", "halves", "room", "up"]

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


class Halves(NamedTuple):
    """What a range holds in bfloat16, words of :mod:`learners.halves`, flat."""

    product16: int
    """As :attr:`learners.mlp_hidden.Hidden.product16`."""
    up: Words
    """The layers' weights, turned ``[D, W]``, by pairs of rows."""
    up_at: Ints
    """Where each layer's begin."""
    down: Words
    """The layers' weights ``[W, D]`` by pairs of rows, of the first only what a gradient is asked of."""
    down_at: Ints
    rows: Words
    """Scratch: a left factor by row."""
    left: Words
    """Scratch: the gradient of a block by pairs of rows."""
    right: Words
    """Scratch: likewise a layer's input."""


def halves(hidden: Hidden, w: Floats, wanted: Floats, block: int) -> Halves | None:
    """Return the weights in bfloat16, and room for blocks; None where layers multiply in float32.

    Args:
        hidden: layers.
        w: of the first one, ``[W, V]``.
        wanted: columns of it whose gradient is asked for, ``[W, v]``; of no width on the way up alone.
        block: candidates of a block, at most.
    """
    return None if hidden.product16 is None else _halves(hidden.product16, hidden, w, wanted, block)


def _typed_halves(hidden: Any, w: Any, wanted: Any, block: Any) -> Any:
    """Choose by type: who multiplies in float32 compiles nothing of the rest."""
    if isinstance(hidden[hidden.fields.index("product16")], _types.NoneType):
        return lambda hidden, w, wanted, block: None
    return lambda hidden, w, wanted, block: _halves(hidden.product16, hidden, w, wanted, block)


_extending.overload(halves, strict=False)(_typed_halves)  # which would compare annotations, too


@kernel
def _halves(address: int, hidden: Hidden, w: Floats, wanted: Floats, block: int) -> Halves:
    widths, n, into = hidden.widths, len(hidden.widths), w.shape[1]
    up_at, down_at = np.zeros(n + 1, np.int64), np.zeros(n + 1, np.int64)
    for layer in range(n):
        below, back = (widths[layer - 1], widths[layer - 1]) if layer else (into, wanted.shape[1])
        up_at[layer + 1] = up_at[layer] + _words(below, widths[layer])
        down_at[layer + 1] = down_at[layer] + _words(widths[layer], back)
    widest, tallest = max(into, widths.max()), max(block, widths.max())
    up, down = room(up_at[n]), room(down_at[n])
    rows, pairs = room(tallest * row_words(widest)), _words(block, widest)
    for layer in range(n):
        of_layer = linear(hidden.packed, widths, layer - 1)[0] if layer else w
        turned(of_layer, rows, up[up_at[layer] : up_at[layer + 1]])
        by_pairs(of_layer if layer else wanted, down[down_at[layer] : down_at[layer + 1]])
    return Halves(address, up, up_at, down, down_at, rows, room(pairs), room(pairs))


@kernel
def _words(n: int, width: int) -> int:
    """Return how many words ``n`` rows are by pairs of them."""
    return (n + 1) // 2 * padded(width)


@kernel
def room(n: int) -> Words:
    """Return so many words from a cache line on: otherwise every vector lies in two of them."""
    words = np.empty(n + LINE, np.int32)
    start = -(words.ctypes.data // 4) % LINE
    return words[start : start + n]


@kernel
def up(sgemm: int, own: Halves | None, layer: int, x: Floats, w: Floats, out: Floats) -> None:
    """Write ``x w'`` to ``out [B, W]``.

    Args:
        sgemm: of :func:`learners.blas.product`.
        own: of :func:`halves`.
        layer: number of the layer.
        x: ``[B, D]``.
        w: its weights, ``[W, D]``.
        out: see above.
    """
    if own is None:
        product(sgemm, x, False, w, True, out, False)
        return
    k = x.shape[1]
    by_row(x, own.rows)
    of_layer = own.up[own.up_at[layer] : own.up_at[layer + 1]]
    product16(own.product16, own.rows, row_words(k), 1, of_layer, padded(out.shape[1]), (k + 1) // 2, out, False)


@kernel
def down(sgemm: int, own: Halves | None, layer: int, grad: Floats, x: Floats, w: Floats, of_w: Floats, of_x: Floats) -> None:
    """Add ``grad' x`` to ``of_w [W, D]`` and write ``grad w`` to ``of_x [B, D]``.

    Args:
        sgemm: as of :func:`up`, like the next two.
        own: see above.
        layer: see above.
        grad: by what :func:`up` wrote, ``[B, W]``.
        x: what it was given.
        w: likewise; of the first layer, like ``of_x``, only the columns that are asked for.
        of_w: see above.
        of_x: see above.
    """
    if own is None:
        product(sgemm, grad, True, x, False, of_w, True)
        product(sgemm, grad, False, w, False, of_x, False)
        return
    n, width = grad.shape
    by_row_and_pairs(grad, own.rows, own.left)
    by_pairs(x, own.right)
    product16(own.product16, own.left, 1, padded(width), own.right, padded(x.shape[1]), (n + 1) // 2, of_w, True)
    of_layer = own.down[own.down_at[layer] : own.down_at[layer + 1]]
    product16(own.product16, own.rows, row_words(width), 1, of_layer, padded(of_x.shape[1]), (width + 1) // 2, of_x, False)
