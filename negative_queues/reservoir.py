"""Reservoir: a uniform sample of the distinct ids that a stream has ever brought, however often each came.

Bottom-k sampling (Cohen and Kaplan, "Summarizing data using bottom-k sketches", PODC 2007): keep the ``k`` ids whose hashes
are smallest. The sample is a function of the seed and of the *set* of ids, not of their order or counts, so replay, restart
and several workers agree without a generator's state; and ``(k - 1) / h`` with ``h`` the largest kept hash in (0, 1] estimates
how many there are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from negative_queues.draws import draw_key, fold64
from negative_queues.id_queue import QueueStateError
from negative_queues.kernels import kernel

__all__ = ["Reservoir"]

Ids = npt.NDArray[np.int64]
Hashes = npt.NDArray[np.uint64]


class Reservoir:
    """The ``capacity`` distinct ids with the smallest hashes; id 0 is "unknown" and never kept.

    Args:
        capacity: ``k``, at least 1; 16 bytes each.
        seed: of the hash.

    Raises:
        ValueError: the capacity is out of range.

    >>> reservoir = Reservoir(2)
    >>> reservoir.offer([5, 5, 5, 5]); reservoir.offer([6])
    >>> sorted(reservoir.ids.tolist()), reservoir.n_distinct()
    ([5, 6], 2.0)
    """

    def __init__(self, capacity: int, seed: int = 0) -> None:
        if capacity < 1:
            raise ValueError(f"capacity must be at least 1 id, got {capacity}")
        self.capacity, self.seed = int(capacity), int(seed)
        self._key = draw_key(seed, "reservoir", "hash", 0)
        self._ids, self._hashes = np.zeros(0, np.int64), np.zeros(0, np.uint64)

    @property
    def ids(self) -> Ids:
        """The kept ids in the order of their hashes, int64 ``[fill]``; read only."""
        view = self._ids.view()
        view.flags.writeable = False
        return view

    @property
    def fill(self) -> int:
        """Ids kept, 0 to ``capacity``."""
        return len(self._ids)

    def offer(self, ids: npt.ArrayLike) -> None:
        """Let ids in that belong to the sample, int64 ``[n]``."""
        values = _as_ids(ids)
        hashes = _hashes(self._key, values)
        new = values != 0
        if self.fill == self.capacity:
            new &= hashes < self._hashes[-1]
        if not new.any():
            return
        kept = np.concatenate([self._hashes, hashes[new]])
        # The hash is a bijection of 64 bits, so distinct hashes are distinct ids.
        kept, first = np.unique(kept, return_index=True)
        self._hashes = kept[: self.capacity]
        self._ids = np.concatenate([self._ids, values[new]])[first[: self.capacity]]

    def holds(self, ids: npt.ArrayLike) -> npt.NDArray[np.bool_]:
        """Return whether each id is kept, bool ``[n]``."""
        hashes = _hashes(self._key, _as_ids(ids))
        at = np.minimum(np.searchsorted(self._hashes, hashes), max(self.fill - 1, 0))
        return self._hashes[at] == hashes if self.fill else np.zeros(len(hashes), np.bool_)

    def n_distinct(self) -> float:
        """Return the number of distinct ids offered so far: exact until full, then within about ``1 / sqrt(k)`` of it."""
        if self.fill < self.capacity:
            return float(self.fill)
        return max(float(self.capacity), (self.capacity - 1) / ((float(self._hashes[-1]) + 1.0) / 2.0**64))

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """Return ``ids`` int64 ``[fill]`` and ``shape`` int64 ``[2]``: capacity and seed."""
        return {"ids": self.ids, "shape": np.array([self.capacity, self.seed], np.int64)}

    def load_state(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Become exactly the reservoir that returned ``state``.

        Raises:
            QueueStateError: it is of another capacity or seed, or damaged; nothing has changed then.
        """
        if set(state) != {"ids", "shape"} or state["shape"].shape != (2,) or state["ids"].ndim != 1:
            raise QueueStateError(f"a reservoir's state is ids and shape; this one has {sorted(state)}")
        if state["shape"].tolist() != [self.capacity, self.seed]:
            raise QueueStateError(
                f"the saved reservoir has (capacity, seed) {tuple(state['shape'].tolist())}, this one "
                f"({self.capacity}, {self.seed}); use those of the saved run"
            )
        ids = np.array(state["ids"], np.int64)
        hashes = _hashes(self._key, ids)
        if len(ids) > self.capacity or (hashes[1:] <= hashes[:-1]).any():
            raise QueueStateError("the saved reservoir is cut or mixed up; take an older checkpoint")
        self._ids, self._hashes = ids, hashes


def _as_ids(ids: npt.ArrayLike) -> Ids:
    values = np.asarray(ids)
    if values.ndim != 1 or (values.dtype.kind not in "iu" and len(values)):
        raise ValueError(f"ids must be integers of one dimension, got {values.dtype} of shape {values.shape}")
    return np.array(values, np.int64)


@kernel
def _hashes(key: np.uint64, ids: Ids) -> Hashes:
    out = np.empty(len(ids), np.uint64)
    for index in range(len(ids)):
        out[index] = fold64(key, np.uint64(ids[index]))
    return out
