"""Subsampling of frequent entities (EGIN section 4.6.1; Mikolov et al. 2013, equation 5).

An entity with frequency ``f`` is kept with probability ``min(1, sqrt(t / f))``. The paper finds no gain in it (0.7109 AUC
against 0.7108), so it is a switch that is off by default. The same mask thins the behaviour sequences (``keep`` of the
edge kinds) or the pool of negatives (what is pushed into the queue).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from learners.graph.edges import GraphError
from negative_queues.draws import DrawKey, draw_uniform

__all__ = ["keep_probability", "subsample"]


def keep_probability(frequency: npt.NDArray[Any], threshold: float) -> npt.NDArray[np.float64]:
    """Return ``min(1, sqrt(threshold / frequency))``, float64 ``[N]``; 1 where the frequency is 0.

    Args:
        frequency: share of the entity among all, ``[N]``: a queue's ``counts / fill``.
        threshold: ``t > 0``; word2vec uses 1e-5 to 1e-3.

    Raises:
        GraphError: the threshold is not positive, or a frequency is negative.
    """
    if not threshold > 0:
        raise GraphError(f"threshold must be above 0, got {threshold}; word2vec uses 1e-5 to 1e-3")
    if (frequency < 0).any():
        raise GraphError(f"frequencies must not be negative, got {frequency.min()}")
    return np.asarray(np.sqrt(threshold / np.maximum(frequency, threshold)), np.float64)


def subsample(frequency: npt.NDArray[Any], threshold: float, key: DrawKey) -> npt.NDArray[np.bool_]:
    """Return which entries stay, bool ``[N]``; each entry is drawn on its own, also where an id comes twice.

    Args:
        frequency: as for :func:`keep_probability`.
        threshold: likewise.
        key: of the draw.

    Raises:
        GraphError: as for :func:`keep_probability`.
    """
    return draw_uniform(key, len(frequency)) < keep_probability(frequency, threshold)
