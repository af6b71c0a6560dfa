"""What decoding makes of records: events as words (:mod:`.core.layout`), and what could not be used."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .core.layout import Ints


class Unusable(NamedTuple):
    """A record that becomes a dead letter."""

    code: str
    """Short name of the reason, for counters."""
    reason: str


class Events:
    """Decoded records.

    Args:
        words: events, in any order.
        starts: ``[N]``, where each begins.
        unusable: by offset.
    """

    def __init__(self, words: Ints, starts: Ints, unusable: dict[int, Unusable]) -> None:
        self.words = words
        self.starts = starts
        self.unusable = unusable

    def __len__(self) -> int:
        return len(self.starts)

    def after(self, n: int) -> Events:
        """Return them without the first ``n``."""
        return Events(self.words, self.starts[n:], self.unusable)


NO_EVENTS = Events(np.zeros(0, np.int64), np.zeros(0, np.int64), {})
