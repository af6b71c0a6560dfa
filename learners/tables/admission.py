"""Who gets a row: every new key, keys seen often enough, or a part drawn by chance.

Most ids of a stream are seen once. A key that was not admitted is scored with the vector that it would start from, and learns
nothing.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from learners.tables.config import TableConfig
from negative_queues.draws import fold, fold64, mix64, uniform_unit
from negative_queues.kernels import kernel

Keys = npt.NDArray[np.int64]
Cells = npt.NDArray[np.uint16]
State = dict[str, npt.NDArray[Any]]
FULL = 0xFFFF
HALVED_AFTER = 8
"""The sketch is halved each time that so many keys a cell were added, so that it counts what is recent (TinyLFU)."""


class Admission(abc.ABC):
    """Decides which new keys get a row."""

    counts_uses = False
    """Whether it matters how often a batch has a key."""
    admits_all = False
    """Whether there is nothing to decide or to remember."""

    @abc.abstractmethod
    def admit(self, unknown: Keys) -> Keys:
        """Return those of the batch's keys without a row, which may repeat, that are given one: distinct, ascending."""

    @abc.abstractmethod
    def state(self) -> State:
        """Return what must survive."""

    @abc.abstractmethod
    def load_state(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Take :meth:`state` back."""


class AdmitAll(Admission):
    """Every key, at first sight."""

    admits_all = True

    def admit(self, unknown: Keys) -> Keys:
        """Return all."""
        return _ascending(unknown)

    def state(self) -> State:
        """Return nothing."""
        return {}

    def load_state(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Take nothing."""


class AdmitFrequent(Admission):
    """Keys that were seen ``least`` times, by a count-min sketch with conservative update (Estan and Varghese 2002).

    The sketch never counts too little, so no key waits longer than it should. A key that was evicted may be counted still, and
    then comes back at once.
    """

    counts_uses = True

    def __init__(self, least: int, cells: int, seed: int) -> None:
        self.least, self._seed = least, seed
        self._cells: Cells = np.zeros((4, cells), np.uint16)
        self._added = 0

    def admit(self, unknown: Keys) -> Keys:
        """Count the keys and return those that have now been seen often enough."""
        keys, counts = np.unique(unknown, return_counts=True)
        if self._added > HALVED_AFTER * self._cells.shape[1]:
            self._cells >>= 1
            self._added //= 2
        self._added += len(unknown)
        estimates = np.empty(len(keys), np.int64)
        _count(self._cells, keys, counts, self._seed, estimates)
        return keys[estimates >= self.least]

    def state(self) -> State:
        """Return the sketch."""
        return {"sketch": self._cells, "sketch_added": np.array(self._added, np.int64)}

    def load_state(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Take the sketch back.

        Raises:
            ValueError: it has another size.
        """
        if state["sketch"].shape != self._cells.shape:
            raise ValueError(
                f"the checkpoint's sketch has {state['sketch'].shape[1]} cells, the config sketch_cells = "
                f"{self._cells.shape[1]}; resume with the config that the run was started with"
            )
        self._cells, self._added = np.array(state["sketch"]), int(state["sketch_added"])


class AdmitSome(Admission):
    """A new key with a probability, in every batch anew: a key seen k times has had k chances. Draws are a function of (table,
    batch, key)."""

    def __init__(self, probability: float, seed: int) -> None:
        self.probability, self._seed = probability, seed
        self._batch = 0

    def admit(self, unknown: Keys) -> Keys:
        """Return the keys that were drawn."""
        keys = _ascending(unknown)
        drawn = np.empty(len(keys), np.bool_)
        _draw(keys, fold(np.uint64(self._seed), self._batch), self.probability, drawn)
        self._batch += 1
        return keys[drawn]

    def state(self) -> State:
        """Return the number of draws so far."""
        return {"admission_batch": np.array(self._batch, np.int64)}

    def load_state(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Take it back."""
        self._batch = int(state["admission_batch"])


def admission_of(config: TableConfig, seed: int) -> Admission:
    """Return what a table's options ask for."""
    if config.admit_after > 1:
        return AdmitFrequent(config.admit_after, config.sketch_cells, seed)
    return AdmitSome(config.admit_probability, seed) if config.admit_probability < 1 else AdmitAll()


@kernel
def _ascending(keys: Keys) -> Keys:
    """Return the distinct keys in ascending order."""
    ordered = np.sort(keys)
    n = min(1, len(ordered))
    for i in range(1, len(ordered)):
        if ordered[i] != ordered[i - 1]:
            ordered[n] = ordered[i]
            n += 1
    return ordered[:n]


@kernel
def _count(cells: Cells, keys: Keys, counts: Keys, seed: int, estimates: Keys) -> None:
    mask = np.uint64(cells.shape[1] - 1)
    at = np.empty(cells.shape[0], np.int64)
    for i in range(len(keys)):
        bits = fold64(np.uint64(seed), np.uint64(keys[i]))
        lowest = FULL
        for row in range(len(at)):
            at[row] = np.int64(bits & mask)
            bits = mix64(bits)
            lowest = min(lowest, int(cells[row, at[row]]))
        estimates[i] = min(lowest + counts[i], FULL)
        for row in range(len(at)):
            cells[row, at[row]] = max(np.int64(cells[row, at[row]]), estimates[i])


@kernel
def _draw(keys: Keys, key: np.uint64, probability: float, drawn: npt.NDArray[np.bool_]) -> None:
    for i in range(len(keys)):
        drawn[i] = uniform_unit(fold64(key, np.uint64(keys[i])), 0) < probability
