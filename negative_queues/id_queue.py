"""IdQueue: the last K entity ids of one node type, the pool that EGIN draws its negatives from.

EGIN (section 3.2) keeps a query queue and an item queue of one million and draws 100 negatives from each. The queue holds
*ids*: embeddings are looked up when they are drawn, so nothing in it goes stale. The caller pushes after its loss, so that
a batch never meets its own ids as negatives.

Letters: ``K`` capacity, ``fill`` slots in use, ``S`` slots of the hash of counts (the power of two at or above ``2 K``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from negative_queues.draws import DrawKey, draw_below, mix64
from negative_queues.kernels import kernel

__all__ = ["IdQueue", "QueueStateError"]

Ids = npt.NDArray[np.int64]


class QueueStateError(ValueError):
    """A saved state that this queue cannot become."""


class IdQueue:
    """Ring of the last ``capacity`` ids pushed, with the count of each id and the age of each slot.

    Ages are in pushes: a learner pushes once per step, also when it has nothing to push.

    Args:
        capacity: ``K``, 1 to 2**31. Memory is 48 to 80 bytes per slot, taken at once.

    Raises:
        ValueError: the capacity is out of range.

    >>> from negative_queues.draws import draw_key
    >>> queue = IdQueue(3)
    >>> queue.push([7, 7]); queue.push([8, 9])
    >>> queue.counts([7, 8, 1]).tolist(), queue.fill, queue.max_age()
    ([1, 1, 0], 3, 1)
    >>> bool(set(queue.draw(5, draw_key(1, "egin", "negatives.item", 0)).tolist()) <= {7, 8, 9})
    True
    """

    def __init__(self, capacity: int) -> None:
        if not 1 <= capacity <= 1 << 31:
            raise ValueError(f"capacity must be 1 to 2**31 ids, got {capacity}; EGIN uses 1,000,000")
        self.capacity = int(capacity)
        self._clear()

    def _clear(self) -> None:
        self._ids = np.zeros(self.capacity, np.int64)
        self._entered = np.zeros(self.capacity, np.int64)  # number of the push that filled the slot
        self._table = np.zeros((1 << (2 * self.capacity - 1).bit_length(), 2), np.int64)
        self._pushes = 0
        self._seen = 0  # ids pushed ever; the next one goes to slot seen % capacity
        self._entered_sum = 0

    @property
    def fill(self) -> int:
        """Slots in use, 0 to ``capacity``."""
        return min(self._seen, self.capacity)

    @property
    def seen(self) -> int:
        """Ids pushed ever; the newest is in slot ``(seen - 1) % capacity``."""
        return self._seen

    @property
    def pushes(self) -> int:
        """Pushes so far, empty ones included."""
        return self._pushes

    def push(self, ids: npt.ArrayLike) -> None:
        """Enter ids, oldest first; the oldest of the ring leave.

        Args:
            ids: int64 ``[n]``, any ``n``: of more than ``capacity`` the last stay, an empty push ages the rest.

        Raises:
            ValueError: not one-dimensional, or not integers.
        """
        values = _as_ids(ids)
        self._pushes += 1
        skipped = max(0, len(values) - self.capacity)
        # Skipped ids still move the cursor: where an id lands depends on how many came before it alone.
        start = (self._seen + skipped) % self.capacity
        old_fill = self.fill
        self._seen += len(values)
        self._entered_sum += int(_push(self._ids, self._entered, self._table, values[skipped:], start, old_fill, self._pushes))

    def draw(self, n: int, key: DrawKey) -> Ids:
        """Return ``n`` ids, each drawn uniformly and independently from the slots in use (with replacement).

        With replacement, because then an id's probability is exactly ``count / fill`` in every draw, which is what the logQ
        correction needs; at 100 of a million the two hardly differ.

        Args:
            n: how many; an empty queue gives none.
            key: :func:`negative_queues.draws.draw_key`; the draw is a function of the key and the slots in use.

        Returns:
            int64 ``[n]``, or ``[0]`` from an empty queue.
        """
        if self.fill == 0:
            return np.zeros(0, np.int64)
        return self._ids[draw_below(key, n, self.fill)]

    def at(self, slots: Ids) -> Ids:
        """Return the ids in some slots (of :mod:`negative_queues.drawing`), int64 ``[n]``."""
        return self._ids[: self.fill][slots]

    def counts(self, ids: npt.ArrayLike) -> Ids:
        """Return how often each id is in the queue, int64 ``[n]`` for ids ``[n]``."""
        values = _as_ids(ids)
        out = np.empty(len(values), np.int64)
        _counts(self._table, values, out)
        return out

    def log_probability(self, ids: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """Return ``log p(id)`` of one draw, float32 ``[n]``: ``log(max(count, 1) / max(fill, 1))``.

        An id that is not in the queue (a positive under the standard logQ) counts as one that is there once.
        """
        counts = np.maximum(self.counts(ids), 1)
        return np.log(counts / max(self.fill, 1)).astype(np.float32)

    def mean_age(self) -> float:
        """Return the mean over the slots in use of the pushes since their id entered; 0 when empty."""
        return self._pushes - self._entered_sum / self.fill if self.fill else 0.0

    def max_age(self) -> int:
        """Return the pushes since the oldest id entered; 0 when empty."""
        if not self.fill:
            return 0
        oldest = self._seen % self.capacity if self._seen >= self.capacity else 0
        return self._pushes - int(self._entered[oldest])

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """Return everything that must survive: views, to be copied before the next push.

        ``ids`` and ``entered`` int64 ``[fill]`` in slot order, ``cursor`` int64 ``[3]``: capacity, ids seen, pushes. Counts
        follow from them.
        """
        cursor = np.array([self.capacity, self._seen, self._pushes], np.int64)
        return {"ids": self._ids[: self.fill], "entered": self._entered[: self.fill], "cursor": cursor}

    def load_state(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Become exactly the queue that returned ``state``.

        Raises:
            QueueStateError: an array is missing, unknown or does not fit; nothing has changed then.
        """
        ids, entered, seen, pushes = self._checked(state)
        self._clear()
        self._ids[: len(ids)] = ids
        self._entered[: len(ids)] = entered
        self._seen, self._pushes, self._entered_sum = seen, pushes, int(entered.sum())
        _count_all(self._table, self._ids[: len(ids)])

    def _checked(self, state: Mapping[str, npt.NDArray[Any]]) -> tuple[Ids, Ids, int, int]:
        if set(state) != {"ids", "entered", "cursor"}:
            raise QueueStateError(f"a queue's state is ids, entered and cursor; this one has {sorted(state)}")
        for name, array in state.items():
            if array.dtype != np.int64 or array.ndim != 1:
                raise QueueStateError(f"{name} must be int64 of one dimension, got {array.dtype} {array.shape}")
        ids, entered, cursor = state["ids"], state["entered"], state["cursor"]
        if len(cursor) != 3:
            raise QueueStateError(f"cursor must be [capacity, seen, pushes], got {cursor.tolist()}")
        capacity, seen, pushes = (int(value) for value in cursor)
        if capacity != self.capacity:
            raise QueueStateError(
                f"the saved queue holds {capacity} ids, this one {self.capacity}; set the capacity to {capacity} to go on, "
                "or start a new run"
            )
        if seen < 0 or pushes < 0 or len(ids) != min(seen, capacity) or len(entered) != len(ids):
            raise QueueStateError(
                f"cursor says {min(seen, capacity)} slots in use, but ids has {len(ids)} and entered {len(entered)}: "
                "the state is cut or mixed up; take an older checkpoint"
            )
        return ids, entered, seen, pushes


def _as_ids(ids: npt.ArrayLike) -> Ids:
    values = np.asarray(ids)
    if values.ndim != 1 or (values.dtype.kind not in "iu" and len(values)):
        raise ValueError(f"ids must be integers of one dimension, got {values.dtype} of shape {values.shape}")
    values = np.ascontiguousarray(values, dtype=np.int64).view()
    values.flags.writeable = False  # one compiled kernel for own arrays and for read-only views of a block
    return values


@kernel
def _find(table: Ids, value: int) -> np.int64:
    """Return the slot of ``value``, or the free slot where it would go (linear probing; the table is at most half full)."""
    mask = len(table) - 1
    slot = np.int64(mix64(np.uint64(value))) & mask
    while table[slot, 1] != 0 and table[slot, 0] != value:
        slot = (slot + 1) & mask
    return slot


@kernel
def _add(table: Ids, value: int) -> None:
    slot = _find(table, value)
    table[slot, 0] = value
    table[slot, 1] += 1


@kernel
def _remove(table: Ids, value: int) -> None:
    """Take one ``value`` off; close the gap by moving later entries of the run back (Knuth 6.4, Algorithm R): no tombstones."""
    mask = len(table) - 1
    gap = _find(table, value)
    table[gap, 1] -= 1
    if table[gap, 1] > 0:
        return
    slot = (gap + 1) & mask
    while table[slot, 1] != 0:
        home = np.int64(mix64(np.uint64(table[slot, 0]))) & mask
        if (slot - home) & mask >= (slot - gap) & mask:
            table[gap, 0], table[gap, 1] = table[slot, 0], table[slot, 1]
            table[slot, 1] = 0
            gap = slot
        slot = (slot + 1) & mask


@kernel
def _push(ring: Ids, entered: Ids, table: Ids, values: Ids, start: int, fill: int, push: int) -> int:
    """Write ``values`` from slot ``start`` on; return the change of the sum of ``entered`` over the slots in use."""
    change = 0
    slot = start
    for value in values:
        if slot < fill:
            _remove(table, ring[slot])
            change -= entered[slot]
        ring[slot] = value
        entered[slot] = push
        change += push
        _add(table, value)
        slot += 1
        if slot == len(ring):
            slot = 0
    return change


@kernel
def _counts(table: Ids, values: Ids, out: Ids) -> None:
    for index in range(len(values)):
        out[index] = table[_find(table, values[index]), 1]


@kernel
def _count_all(table: Ids, values: Ids) -> None:
    for value in values:
        _add(table, value)
