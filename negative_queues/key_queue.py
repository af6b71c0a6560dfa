"""KeyQueue: the last K encoded keys with the ids that they stand for; the dictionary of MoCo, CCL and cross-batch memory.

He et al., "Momentum contrast for unsupervised visual representation learning" (CVPR 2020), section 3.2; Wang et al.,
"Cross-batch memory for embedding learning" (CVPR 2020), section 3. Unlike both public codes the ring wraps at any batch size.

Letters: ``K`` capacity, ``fill`` slots in use, ``D`` dim, ``n`` keys of one enqueue.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from negative_queues.id_queue import QueueStateError

__all__ = ["Entries", "IdsLike", "KeyQueue", "as_ids"]

IdsLike = Tensor | npt.ArrayLike
Arrays = dict[str, npt.NDArray[Any]]

_COLUMN = "column."


class Entries(NamedTuple):
    """Some of a queue: ``keys`` ``[N, D]``, ``ids`` (column -> int64 ``[N]``), ``slots`` int64 ``[N]``."""

    keys: Tensor
    ids: Mapping[str, Tensor]
    slots: Tensor


class _Overwritten(NamedTuple):
    """What one enqueue wrote over: the cursor before it, and the old rows of a run of slots, array by array."""

    seen: int
    pushes: int
    runs: list[tuple[int, list[Tensor]]]


class KeyQueue:
    """Ring of the last ``capacity`` keys; no gradient passes through it.

    Ages are in enqueues and in milliseconds of the times that the caller gives. Memory is ``K (4 D + 16 + 8 x columns)``
    bytes, taken at once.

    Args:
        capacity: ``K``, at least 1; 40 x 1024 in CCL, 65,536 in MoCo.
        dim: ``D``, at least 1.
        columns: names of the int64 ids that come with each key: ``item``, ``user``, ``request``, ``category``, ... In a
            column, 0 is "unknown" and equals nothing.
        dtype: of the stored keys; float32, or bfloat16 for half the memory.
        device: where it lives.

    Raises:
        ValueError: an argument is out of range.

    >>> queue = KeyQueue(3, 2)
    >>> _ = queue.enqueue(torch.tensor([[1.0, 0.0], [2.0, 0.0]]), {"item": [7, 8]})
    >>> queue.enqueue(torch.tensor([[3.0, 0.0], [4.0, 0.0]]), {"item": [9, 10]}).tolist()
    [2, 0]
    >>> queue.keys()[:, 0].tolist(), queue.column("item").tolist(), queue.ages().tolist()
    ([4.0, 2.0, 3.0], [10, 8, 9], [0, 1, 0])
    """

    def __init__(
        self,
        capacity: int,
        dim: int,
        columns: Sequence[str] = ("item",),
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        if capacity < 1 or dim < 1:
            raise ValueError(f"capacity and dim must be at least 1, got {capacity} and {dim}; CCL uses 40,960 keys of 128")
        if len(set(columns)) != len(columns):
            raise ValueError(f"columns must differ from each other, got {list(columns)}")
        if dtype not in (torch.float32, torch.bfloat16):
            raise ValueError(f"dtype must be torch.float32 or torch.bfloat16, got {dtype}")
        self.capacity, self.dim, self.columns = int(capacity), int(dim), tuple(columns)
        self.dtype, self.device = dtype, torch.device(device)
        self._keys = torch.zeros(self.capacity, self.dim, dtype=dtype, device=self.device)
        self._entered = torch.zeros(self.capacity, dtype=torch.int64, device=self.device)  # number of the enqueue
        self._ts = torch.zeros(self.capacity, dtype=torch.int64, device=self.device)
        self._ids = {name: torch.zeros_like(self._entered) for name in self.columns}
        self._seen = 0  # keys ever; the next one goes to slot seen % capacity
        self._pushes = 0
        self._journal: list[_Overwritten] | None = None

    @property
    def fill(self) -> int:
        """Slots in use, 0 to ``capacity``."""
        return min(self._seen, self.capacity)

    @property
    def seen(self) -> int:
        """Keys enqueued ever; the newest is in slot ``(seen - 1) % capacity``."""
        return self._seen

    @property
    def pushes(self) -> int:
        """Enqueues so far, empty ones included."""
        return self._pushes

    def keys(self) -> Tensor:
        """Return the stored keys in slot order, ``[fill, D]``: a view, which the next enqueue overwrites."""
        return self._keys[: self.fill]

    def column(self, name: str) -> Tensor:
        """Return the ids of a column in slot order, int64 ``[fill]``: a view."""
        return self._ids[name][: self.fill]

    def entries(self, slots: IdsLike | None = None) -> Entries:
        """Return copies of the entries in some slots, or of all: what a loss may hold on to while the queue goes on."""
        if slots is None:
            every = torch.arange(self.fill, device=self.device)
            return Entries(self.keys().clone(), {name: self.column(name).clone() for name in self.columns}, every)
        at = as_ids("slots", slots, self.device)
        return Entries(
            self.keys().index_select(0, at), {name: self.column(name).index_select(0, at) for name in self.columns}, at
        )

    def ages(self) -> Tensor:
        """Return the enqueues since each key entered, int64 ``[fill]``; 0 for the newest."""
        return self._pushes - self._entered[: self.fill]

    def ages_ms(self, now_ms: int) -> Tensor:
        """Return the milliseconds since the time that each key came with, int64 ``[fill]``."""
        return now_ms - self._ts[: self.fill]

    def enqueue(self, keys: Tensor, ids: Mapping[str, IdsLike] | None = None, ts_ms: int = 0) -> Tensor:
        """Enter keys, oldest first; the oldest of the ring leave.

        Args:
            keys: ``[n, D]``, any ``n``: of more than ``capacity`` the last stay, an empty enqueue ages the rest. They are
                copied without their graph.
            ids: for every column of the queue, int64 ``[n]``.
            ts_ms: time of the batch, UTC ms; only :meth:`ages_ms` reads it.

        Returns:
            The slot of each key, int64 ``[n]``; -1 for one that did not stay.

        Raises:
            ValueError: a shape or a set of columns does not fit, or a key is not finite; nothing has changed then.
        """
        rows = self._as_keys(keys)
        columns = self._as_columns(ids or {}, len(rows))
        skipped = max(0, len(rows) - self.capacity)
        # Skipped keys still move the cursor: where a key lands depends on how many came before it alone.
        order = torch.arange(len(rows), device=self.device)
        slots = torch.where(order >= skipped, (self._seen + order) % self.capacity, -1)
        runs = list(self._runs((self._seen + skipped) % self.capacity, len(rows) - skipped))
        self._note(runs)
        self._pushes, self._seen = self._pushes + 1, self._seen + len(rows)
        place = skipped
        for start, size in runs:
            part, to = slice(place, place + size), slice(start, start + size)
            self._keys[to] = rows[part]
            self._entered[to], self._ts[to] = self._pushes, ts_ms
            for name, values in columns.items():
                self._ids[name][to] = values[part]
            place += size
        return slots

    @contextlib.contextmanager
    def attempt(self) -> Iterator[None]:
        """Undo every enqueue inside, to the bit, when the block raises: a step that fails leaves the queue as it was.

        Blocks may be nested. Only what is overwritten is copied, not the queue.
        """
        outermost = self._journal is None
        journal = self._journal = [] if self._journal is None else self._journal
        mark = len(journal)
        try:
            yield
        except BaseException:
            while len(journal) > mark:
                self._undo(journal.pop())
            raise
        finally:
            if outermost:
                self._journal = None

    def state(self) -> Arrays:
        """Return everything that must survive: views on the CPU (copy before the next enqueue), copies from elsewhere.

        ``keys`` float32 ``[fill, D]`` (bfloat16 as the int16 of its bits), ``entered``, ``ts`` and ``column.*`` int64
        ``[fill]`` in slot order, ``cursor`` int64 ``[3]``: capacity, keys seen, enqueues.
        """
        bits = self.keys() if self.dtype == torch.float32 else self.keys().view(torch.int16)
        named = {"keys": bits, "entered": self._entered[: self.fill], "ts": self._ts[: self.fill]}
        named |= {_COLUMN + name: self.column(name) for name in self.columns}
        cursor = np.array([self.capacity, self._seen, self._pushes], np.int64)
        return {name: tensor.cpu().numpy() for name, tensor in named.items()} | {"cursor": cursor}

    def load_state(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Become exactly the queue that returned ``state``.

        Raises:
            QueueStateError: an array is missing, unknown or does not fit; nothing has changed then.
        """
        fill = self._check(state)
        self._seen, self._pushes = int(state["cursor"][1]), int(state["cursor"][2])
        loaded = {name: torch.from_numpy(np.array(array)) for name, array in state.items() if name != "cursor"}
        self._keys[:fill] = loaded["keys"].view(self.dtype).to(self.device)
        self._entered[:fill], self._ts[:fill] = loaded["entered"].to(self.device), loaded["ts"].to(self.device)
        for name, values in self._ids.items():
            values[:fill] = loaded[_COLUMN + name].to(self.device)

    def _arrays(self) -> list[Tensor]:
        return [self._keys, self._entered, self._ts, *self._ids.values()]

    def _runs(self, start: int, n: int) -> Iterator[tuple[int, int]]:
        """Yield (first slot, length) of the one or two runs of slots that ``n`` keys from ``start`` on fill; ``n <= K``."""
        first = min(n, self.capacity - start)
        yield start, first
        if n > first:
            yield 0, n - first

    def _note(self, runs: list[tuple[int, int]]) -> None:
        if self._journal is not None:
            old = [(start, [array[start : start + size].clone() for array in self._arrays()]) for start, size in runs]
            self._journal.append(_Overwritten(self._seen, self._pushes, old))

    def _undo(self, written: _Overwritten) -> None:
        self._seen, self._pushes = written.seen, written.pushes
        for start, old in written.runs:
            for array, rows in zip(self._arrays(), old, strict=True):
                array[start : start + len(rows)] = rows

    def _as_keys(self, keys: Tensor) -> Tensor:
        if keys.ndim != 2 or keys.shape[1] != self.dim:
            raise ValueError(f"keys must be [n, {self.dim}], got {list(keys.shape)}")
        rows = keys.detach().to(self.device, self.dtype)
        if not bool(torch.isfinite(rows).all()):
            raise ValueError(
                "keys hold NaN or infinity, which would spoil every loss until they leave; look at the key encoder"
            )
        return rows

    def _as_columns(self, ids: Mapping[str, IdsLike], n: int) -> dict[str, Tensor]:
        if set(ids) != set(self.columns):
            raise ValueError(f"each key comes with the ids {list(self.columns)}, got {list(ids)}")
        columns = {name: as_ids(name, values, self.device) for name, values in ids.items()}
        for name, values in columns.items():
            if len(values) != n:
                raise ValueError(f"{name} has {len(values)} ids for {n} keys")
        return columns

    def _check(self, state: Mapping[str, npt.NDArray[Any]]) -> int:
        own = self.state()
        if set(state) != set(own):
            raise QueueStateError(f"this queue's state is {sorted(own)}; the saved one has {sorted(state)}")
        cursor = state["cursor"]
        if cursor.dtype != np.int64 or cursor.shape != (3,) or (cursor < 0).any():
            raise QueueStateError(f"cursor must be int64 [capacity, seen, enqueues], got {cursor.dtype} {cursor.tolist()}")
        capacity, seen = int(cursor[0]), int(cursor[1])
        if capacity != self.capacity:
            raise QueueStateError(
                f"the saved queue holds {capacity} keys, this one {self.capacity}; set the capacity to {capacity} to go on, "
                "or start a new run"
            )
        fill = min(seen, capacity)
        for name, array in own.items():
            shape = (fill, *array.shape[1:])
            if name != "cursor" and (state[name].dtype != array.dtype or state[name].shape != shape):
                raise QueueStateError(
                    f"{name} was saved as {state[name].dtype} {state[name].shape}, this queue needs {array.dtype} {shape}; "
                    "use the dim and dtype of the saved run"
                )
        return fill


def as_ids(name: str, values: IdsLike, device: torch.device) -> Tensor:
    """Return ids as int64 ``[n]`` on a device.

    Raises:
        ValueError: not integers, or not of one dimension.
    """
    if not isinstance(values, Tensor):
        array = np.array(values)  # a copy: torch takes no read-only array without a warning
        values = torch.from_numpy(array if array.size else array.astype(np.int64))
    if values.ndim != 1 or values.is_floating_point() or values.is_complex() or values.dtype == torch.bool:
        raise ValueError(f"{name} must be integers of one dimension, got {values.dtype} {list(values.shape)}")
    return values.to(device, torch.int64)
