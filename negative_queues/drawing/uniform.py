"""Uniform over the slots in use, with replacement: an id's probability is its share of the queue (EGIN, section 3.2)."""

from __future__ import annotations

import numpy as np

from negative_queues.drawing.ring import Ring, Slots
from negative_queues.draws import DrawKey, draw_below

__all__ = ["uniform_slots"]


def uniform_slots(ring: Ring, n: int, key: DrawKey) -> Slots:
    """Return ``n`` slots, int64 ``[n]``; none from an empty queue. ``IdQueue.draw`` returns the ids of these slots."""
    return draw_below(key, n, ring.fill) if ring.fill else np.zeros(0, np.int64)
