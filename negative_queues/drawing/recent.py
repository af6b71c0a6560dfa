"""Recency-weighted: an entry ``half_life`` entries older than another is half as likely to be drawn.

With ``q = 2 ** (-1 / half_life)`` an entry of rank ``r`` (0 the newest of ``F``) has ``p(r) = q^r (1 - q) / (1 - q^F)``: a
geometric distribution cut at ``F``. Its inverse, ``r = floor(log(1 - u (1 - q^F)) / log q)``, turns a uniform ``u`` into a
rank at a cost that does not depend on ``F``.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from negative_queues.drawing.ring import Ring, Slots, rank_of, slot_of
from negative_queues.draws import DrawKey, draw_uniform

__all__ = ["recent_log_probability", "recent_slots"]


def recent_slots(ring: Ring, n: int, key: DrawKey, half_life: float) -> Slots:
    """Return ``n`` slots with replacement, int64 ``[n]``; none from an empty queue.

    Args:
        ring: the queue.
        n: how many.
        key: of the draw.
        half_life: in entries, above 0; far above ``fill`` the draw is uniform.

    Raises:
        ValueError: ``half_life`` is not above 0.
    """
    log_q = _log_q(half_life)
    if not ring.fill:
        return np.zeros(0, np.int64)
    below = -math.expm1(ring.fill * log_q)  # 1 - q^F
    ranks = np.floor(np.log1p(-draw_uniform(key, n) * below) / log_q).astype(np.int64)
    return slot_of(ring, np.minimum(ranks, ring.fill - 1))  # rounding can reach F


def recent_log_probability(ring: Ring, slots: Slots, half_life: float) -> npt.NDArray[np.float32]:
    """Return the log probability of each slot in one draw of :func:`recent_slots`, float32 ``[n]``."""
    log_q = _log_q(half_life)
    norm = math.log(-math.expm1(log_q)) - math.log(-math.expm1(max(ring.fill, 1) * log_q))
    return (rank_of(ring, slots) * log_q + norm).astype(np.float32)


def _log_q(half_life: float) -> float:
    if not 0 < half_life < math.inf:
        raise ValueError(f"half_life must be above 0 entries and finite, got {half_life}; for all alike take uniform_slots")
    return -math.log(2.0) / half_life
