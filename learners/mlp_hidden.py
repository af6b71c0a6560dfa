"""How the layers of :class:`learners.request_mlp.RequestMLP` behind the first linear one lie in one array, in kernels.

Legend: ``W`` width of a layer, ``N`` that of the next one, or 1.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from negative_queues.kernels import kernel

__all__ = ["Hidden", "linear", "packed_size", "vectors"]

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


class Hidden(NamedTuple):
    """Normalisations and the linear layers behind them."""

    packed: Floats
    """Gain ``[W]``, shift ``[W]``, weight ``[N, W]``, bias ``[N]`` of each behind one another."""
    widths: Ints
    """``W`` of each."""
    product16: int | None = None
    """What multiplies in bfloat16 (:func:`learners.products16.address`); None where layers multiply in float32."""


@kernel
def packed_size(widths: Ints, layers: int) -> int:
    """Return how many floats the first so many layers of :attr:`Hidden.packed` are."""
    total = 0
    for layer in range(layers):
        total += (2 + _next(widths, layer)) * widths[layer] + _next(widths, layer)
    return total


@kernel
def _next(widths: Ints, layer: int) -> int:
    return widths[layer + 1] if layer + 1 < len(widths) else 1


@kernel
def vectors(packed: Floats, widths: Ints, layer: int) -> Floats:
    """Return gain and shift of a layer, ``[2, W]``."""
    at, width = packed_size(widths, layer), widths[layer]
    return packed[at : at + 2 * width].reshape(2, width)


@kernel
def linear(packed: Floats, widths: Ints, layer: int) -> tuple[Floats, Floats]:
    """Return weight ``[N, W]`` and bias ``[N]`` of a layer."""
    width, above = widths[layer], _next(widths, layer)
    at = packed_size(widths, layer) + 2 * width
    end = at + above * width
    return packed[at:end].reshape(above, width), packed[end : end + above]
