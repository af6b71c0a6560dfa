"""VectorStore: pre-extracted vectors of items, bounded, in a file that is mapped into memory.

A model reads them beside the samples; nothing here is learned. It holds the ``capacity`` items whose vectors came last, of each
the newest vector. When it is full, the item whose vector came longest ago gives way: being *read* makes no vector younger,
because scoring must change nothing (:meth:`learners.learner.Learner.predict`). What it holds is a function of the sequence of
vectors alone, however they are cut into calls of :meth:`VectorStore.put`.

The file is scratch: what must survive is in :meth:`VectorStore.state`, and pages that were never written take no room.

Legend: ``N`` items, ``D`` dim.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from learners.learner import State
from learners.tables import probing
from learners.tables.index import Keys, Rows
from learners.tables.storage import power_of_two
from negative_queues.kernels import kernel

__all__ = ["VectorError", "VectorStore"]

Vectors = npt.NDArray[np.float32]
Flags = npt.NDArray[np.bool_]


class VectorError(ValueError):
    """Vectors of another length than the store's, or a store of another size."""


class VectorStore:
    """Item -> vector.

    Args:
        path: of the file, which is made or overwritten; None takes an unnamed temporary file.
        dim: ``D``, at least 1.
        capacity: items held, at least 1.

    Raises:
        VectorError: ``dim`` or ``capacity`` is less.
    """

    def __init__(self, path: Path | None, dim: int, capacity: int) -> None:
        if dim < 1 or capacity < 1:
            raise VectorError(f"vectors: dim = {dim} and capacity = {capacity} must be at least 1")
        self.dim, self.capacity = dim, capacity
        self.hits = self.misses = 0
        """Look-ups that found a vector, and that did not, in this process; the missing item (0) is neither."""
        rows = capacity + 1  # Row 0 is the missing item's, and links the oldest vector to the newest.
        self._vectors = _mapped(path, rows, dim)
        self._keys: Keys = np.zeros(rows, np.int64)
        self._older: Rows = np.zeros(rows, np.int32)
        self._newer: Rows = np.zeros(rows, np.int32)
        self._slots: probing.Slots = np.zeros(power_of_two(2 * rows), np.uint32)
        self._sizes = np.zeros(2, np.int64)  # items held, items that gave way

    def __len__(self) -> int:
        """Items that have a vector."""
        return int(self._sizes[0])

    @property
    def evicted(self) -> int:
        """Items that have given way so far."""
        return int(self._sizes[1])

    def put(self, items: Keys, vectors: Vectors) -> None:
        """Keep vectors, in the order of the rows; of an item that comes twice the later one.

        Args:
            items: int64 ``[N]``, none of them 0.
            vectors: float32 ``[N, D]``.

        Raises:
            VectorError: another shape.
        """
        if vectors.shape != (len(items), self.dim):
            raise VectorError(f"vectors of shape {vectors.shape} for {len(items)} items, the store has dim = {self.dim}")
        _put(self._slots, self._keys, self._older, self._newer, self._sizes, self._vectors, items, vectors)

    def get(self, items: Keys) -> tuple[Vectors, Flags]:
        """Return the vectors of items, float32 ``[N, D]`` with zeros where there is none, and where there is one, ``[N]``."""
        rows = np.empty(len(items), np.int32)
        probing.find(self._slots, self._keys, items, rows)
        found: Flags = rows > 0
        out = np.zeros((len(items), self.dim), np.float32)
        _gather(self._vectors, rows, out)
        hits = int(np.count_nonzero(found))
        self.hits += hits
        self.misses += int(np.count_nonzero(items)) - hits
        return out, found

    def state(self) -> State:
        """Return everything that must survive; the arrays of rows are views, to be copied before the next :meth:`put`."""
        held = slice(0, len(self) + 1)
        return {
            "capacity": np.array(self.capacity, np.int64),
            "sizes": self._sizes,
            "key": self._keys[held],
            "older": self._older[held],
            "newer": self._newer[held],
            "vector": self._vectors[held],
        }

    def load_state(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Hold exactly what the store that returned ``state`` held.

        Raises:
            VectorError: its vectors have another length, or its capacity is another; nothing has changed then.
        """
        for name, theirs, own in (
            ("dim", state["vector"].shape[1], self.dim),
            ("capacity", int(state["capacity"]), self.capacity),
        ):
            if theirs != own:
                raise VectorError(
                    f"the checkpoint's store of item vectors has {name} = {theirs}, this run vectors.{name} = {own}: give "
                    f"vectors.{name} = {theirs}, or start a new run"
                )
        self._sizes[:] = state["sizes"]
        held = slice(0, len(self) + 1)
        self._keys[:] = 0
        self._keys[held], self._vectors[held] = state["key"], state["vector"]
        self._older[held], self._newer[held] = state["older"], state["newer"]
        probing.rebuild(self._slots, self._keys, len(self) + 1)


def _mapped(path: Path | None, rows: int, dim: int) -> Vectors:
    if path is not None:
        return np.memmap(path, np.float32, "w+", shape=(rows, dim))
    with tempfile.TemporaryFile() as file:
        return np.memmap(file, np.float32, "w+", shape=(rows, dim))


@kernel
def _put(
    slots: probing.Slots,
    keys: Keys,
    older: Rows,
    newer: Rows,
    sizes: Keys,
    held: Vectors,
    items: Keys,
    vectors: Vectors,
) -> None:
    """Write one vector after the other. ``older`` and ``newer`` link the rows in a ring by age: row 0 has the newest vector
    on its older side, and on its newer side the oldest one."""
    capacity = len(keys) - 1
    for i in range(len(items)):
        row = np.int32(probing.find_one(slots, keys, items[i]))
        if row < 0 and sizes[0] < capacity:
            sizes[0] += 1
            row = np.int32(sizes[0])
            probing.insert(slots, keys, items[i : i + 1], np.full(1, row))
        else:
            if row < 0:
                row = newer[0]
                sizes[1] += 1
                probing.remove(slots, keys, keys[row])
                probing.insert(slots, keys, items[i : i + 1], np.full(1, row))
            newer[older[row]], older[newer[row]] = newer[row], older[row]
        newest = older[0]
        newer[newest], older[row], newer[row], older[0] = row, newest, 0, row
        held[row] = vectors[i]


@kernel
def _gather(held: Vectors, rows: Rows, out: Vectors) -> None:
    """Copy the vectors of ``rows`` to ``out``; rows below 1 leave theirs as they are."""
    for i in range(len(rows)):
        if rows[i] > 0:
            out[i] = held[rows[i]]
