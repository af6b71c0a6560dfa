"""What a batch asks of a table, deduped: a function of the batch alone, so that tables can share it and a thread make it ahead.

Legend: ``N`` keys of a use, ``U`` distinct ones over all uses.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from learners.tables import probing
from learners.tables.storage import power_of_two

Keys = npt.NDArray[np.int64]
Rows = npt.NDArray[np.int32]
NO_SLOTS: Rows = np.zeros(0, np.int32)

__all__ = ["Distinct", "deduped", "distinct"]


class Distinct(NamedTuple):
    """The distinct keys of some uses of a table."""

    keys: Keys
    """In order of appearance, int64 ``[U]``."""
    places: list[torch.Tensor]
    """Per use the place of each key among them, int64 ``[N]``."""
    n_first: int
    """Distinct keys of the first use: the first of ``keys``."""
    slots: Rows
    """A hash table of places among ``keys``, as :func:`learners.tables.probing.dedupe` left it; empty where there is none."""

    @staticmethod
    def of_distinct(keys: Keys) -> Distinct:
        """Return keys that are distinct already, ``[U]``, as one use."""
        return Distinct(keys, [torch.arange(len(keys))], len(keys), NO_SLOTS)

    def with_more(self, more: Keys) -> Distinct:
        """Return the same with one more use, as if it had been there from the beginning."""
        if not len(more):
            return self._replace(places=[*self.places, torch.from_numpy(more)])
        if 2 * (len(self.keys) + len(more)) > len(self.slots):
            slots = _slots(len(self.keys) + len(more))
            probing.dedupe(self.keys, slots, np.empty(len(self.keys), np.int64), np.empty(len(self.keys), np.int64), 0)
        else:
            slots = self.slots.copy()
        unique, places = np.empty(len(self.keys) + len(more), np.int64), np.empty(len(more), np.int64)
        unique[: len(self.keys)] = self.keys
        n = probing.dedupe(more, slots, unique, places, len(self.keys))
        return Distinct(unique[:n], [*self.places, torch.from_numpy(places)], self.n_first, slots)

    def first(self) -> Distinct:
        """Return the first use alone."""
        return Distinct(self.keys[: self.n_first], self.places[:1], self.n_first, NO_SLOTS)

    def all_places(self) -> Keys:
        """Return the places of all uses, one after another."""
        return self.places[0].numpy() if len(self.places) == 1 else torch.cat(self.places).numpy()


def distinct(*uses: Keys) -> Distinct:
    """Dedupe the keys of some uses, each int64 ``[N]``, together; 0 is the missing key."""
    n_keys = sum(map(len, uses))
    unique, inverse, slots = np.empty(n_keys, np.int64), np.empty(n_keys, np.int64), _slots(n_keys)
    n = n_first = start = 0
    places = []
    for use, keys in enumerate(uses):
        places.append(inverse[start : start + len(keys)])
        n = probing.dedupe(np.ascontiguousarray(keys), slots, unique, places[-1], n)
        n_first, start = n if use == 0 else n_first, start + len(keys)
    return Distinct(unique[:n], [torch.from_numpy(each) for each in places], n_first, slots)


def deduped(ids: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], Keys]:
    """Return distinct keys (int64) or rows (int32) in order of appearance ``[U]``, and each one's place among them ``[N]``."""
    unique, inverse = np.empty(len(ids), ids.dtype), np.empty(len(ids), np.int64)
    n = probing.dedupe(ids, _slots(len(ids)), unique, inverse, 0)
    return unique[:n], inverse


def _slots(n_keys: int) -> Rows:
    return np.full(power_of_two(2 * n_keys + 1), -1, np.int32)
