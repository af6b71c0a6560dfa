"""Easy and hard by category: hard negatives are of the positive's category, easy ones of any other.

A softmax over easy negatives alone learns to tell categories apart; a share of hard ones makes it tell entities apart within.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from negative_queues.drawing.ring import Slots
from negative_queues.draws import DrawKey, draw_uniform

__all__ = ["CategorySlots", "category_slots"]


class CategorySlots(NamedTuple):
    """What was drawn: ``slots`` int64 ``[B, n]``, the hard ones first; ``found`` bool ``[B, n]``.

    ``found`` is False where the queue had none of the kind asked for, and any slot was taken.
    """

    slots: Slots
    found: npt.NDArray[np.bool_]


def category_slots(
    categories: npt.NDArray[np.int64], wanted: npt.NDArray[np.int64], n: int, key: DrawKey, hard_share: float
) -> CategorySlots:
    """Return ``n`` slots for each positive, with replacement.

    The cost is one stable sort of the queue's categories, then a look-up per draw: 0.1 s for a million slots.

    Args:
        categories: of the slots in use, int64 ``[fill]``; ``queue.column("category").cpu().numpy()`` of a key queue.
        wanted: the positives' categories, int64 ``[B]``. 0 is unknown: no slot is of that category.
        n: draws per positive.
        key: of the draw; draw ``i`` of positive ``b`` is draw ``b n + i`` under it.
        hard_share: of the positive's category, 0 to 1; ``round(n x hard_share)`` of the draws.

    Raises:
        ValueError: ``hard_share`` is out of range.
    """
    if not 0 <= hard_share <= 1:
        raise ValueError(f"hard_share must be 0 to 1 of the draws, got {hard_share}")
    fill, n_hard = len(categories), round(n * hard_share)
    if not fill:
        return CategorySlots(np.zeros((len(wanted), 0), np.int64), np.zeros((len(wanted), 0), np.bool_))
    by_category = np.argsort(categories, kind="stable")
    ordered = categories[by_category]
    start = np.searchsorted(ordered, wanted, "left")[:, None]
    size = np.where(wanted != 0, np.searchsorted(ordered, wanted, "right") - start[:, 0], 0)[:, None]
    hard = (np.arange(n) < n_hard)[None, :]
    pool = np.where(hard, size, fill - size)
    found = pool > 0
    at = np.floor(draw_uniform(key, len(wanted) * n).reshape(len(wanted), n) * np.where(found, pool, fill)).astype(np.int64)
    # The k-th of the category stands at start + k; the k-th of the others beyond it once k reaches start.
    place = np.where(hard, start + at, at + np.where(at >= start, size, 0))
    return CategorySlots(by_category[np.where(found, place, at)], found)
