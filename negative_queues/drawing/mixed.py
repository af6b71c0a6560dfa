"""Mixed negative sampling: some negatives from the queue, some uniformly from everything that was ever there.

Yang et al., "Mixed negative sampling for learning two-tower neural networks in recommendations" (WWW 2020): what the stream
brings is popular, so rare ids hardly ever serve as negatives and score too high; a share drawn uniformly from the catalogue
mends that. A stream has no catalogue: a :class:`~negative_queues.reservoir.Reservoir` stands for it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from negative_queues.drawing.ring import Ring, Slots
from negative_queues.drawing.uniform import uniform_slots
from negative_queues.draws import DrawKey, draw_below, fold
from negative_queues.id_queue import IdQueue
from negative_queues.reservoir import Reservoir

__all__ = ["MixedDraw", "mixed_draw", "mixed_log_probability"]


class MixedDraw(NamedTuple):
    """What was drawn: ``slots`` of the queue and ``places`` of the reservoir, int64."""

    slots: Slots
    places: Slots


def mixed_draw(ring: Ring, reservoir: Reservoir, n: int, key: DrawKey, share: float) -> MixedDraw:
    """Return ``n`` negatives, ``round(n x share)`` of them from the reservoir, uniformly and with replacement.

    Where one of the two is empty, the other gives all.

    Args:
        ring: the queue.
        reservoir: of the same entities.
        n: how many in all.
        key: of the draw.
        share: from the reservoir, 0 to 1.

    Raises:
        ValueError: ``share`` is out of range.

    >>> from negative_queues import draw_key
    >>> queue, reservoir = IdQueue(100), Reservoir(10)
    >>> queue.push([5] * 90); reservoir.offer([5] * 90 + [6, 7])
    >>> drawn = mixed_draw(queue, reservoir, 8, draw_key(0, "model", "negatives", 0), share=0.25)
    >>> ids = np.concatenate([queue.at(drawn.slots), reservoir.ids[drawn.places]])
    >>> len(drawn.slots), len(drawn.places), len(ids)
    (6, 2, 8)
    """
    from_reservoir = _from_reservoir(ring, reservoir, n, share)
    slots = uniform_slots(ring, n - from_reservoir, fold(key, 0))
    places = draw_below(fold(key, 1), from_reservoir, reservoir.fill) if reservoir.fill else np.zeros(0, np.int64)
    return MixedDraw(slots, places)


def mixed_log_probability(
    queue: IdQueue, reservoir: Reservoir, ids: npt.ArrayLike, n: int, share: float
) -> npt.NDArray[np.float32]:
    """Return the log probability of ids in one draw of the mixture, float32: ``log(sum_s share_s p_s(id))``.

    An id that is in neither counts as one that is in the queue once.
    """
    part = _from_reservoir(queue, reservoir, n, share) / max(n, 1)
    in_queue = queue.counts(ids) / max(queue.fill, 1)
    in_reservoir = reservoir.holds(ids) / max(reservoir.fill, 1)
    p = (1.0 - part) * in_queue + part * in_reservoir
    return np.log(np.where(p > 0, p, 1.0 / max(queue.fill, 1))).astype(np.float32)


def _from_reservoir(ring: Ring, reservoir: Reservoir, n: int, share: float) -> int:
    if not 0 <= share <= 1:
        raise ValueError(f"share must be 0 to 1 of the draws, got {share}")
    if not ring.fill:
        return n
    return round(n * share) if reservoir.fill else 0
