"""What a drawing strategy knows of a queue."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

__all__ = ["Ring", "Slots", "rank_of", "slot_of"]

Slots = npt.NDArray[np.int64]


class Ring(Protocol):
    """A ring of slots: the newest entry is in slot ``(seen - 1) % capacity``, the others before it."""

    @property
    def fill(self) -> int:
        """Slots in use."""

    @property
    def seen(self) -> int:
        """Entries ever."""

    @property
    def capacity(self) -> int:
        """Slots."""


def slot_of(ring: Ring, ranks: Slots) -> Slots:
    """Return the slots of ranks ``[n]``, rank 0 the newest entry, ``fill - 1`` the oldest."""
    return (ring.seen - 1 - ranks) % ring.capacity


def rank_of(ring: Ring, slots: Slots) -> Slots:
    """Return the ranks of slots ``[n]``."""
    return (ring.seen - 1 - slots) % ring.capacity
