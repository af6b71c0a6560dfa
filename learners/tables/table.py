"""EmbeddingTable: one vector per 64-bit id, admitted when first learned, evicted when the table is full.

Legend: ``N`` keys asked for, ``U`` distinct ones among them, ``D`` dim.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import torch

from learners.tables import probing
from learners.tables.index import Keys, RowIndex, Rows, State
from learners.tables.update import rowwise_adagrad, rowwise_adagrad_torch


class TableConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Options of one table."""

    dim: int = 16
    rate: float = 0.1
    """Learning rate of row-wise Adagrad."""
    keep: float = 1.0
    """Share of a row's accumulator that stays at each update; 1 is Adagrad, a little less follows a changing stream."""
    eps: float = 1e-8
    initial_accumulated: float = 0.0
    """What a new row's accumulator starts from; above 0 damps its first steps."""
    initial_scale: float = 0.01
    """A new vector is uniform in [-scale, scale)."""
    max_rows: int = 10_000_000
    """Bound on memory; see :class:`learners.tables.index.RowIndex`."""


class Gathered(NamedTuple):
    """Vectors of one batch.

    ``weight`` is ``[U, D]``, a leaf that collects the gradient; ``places`` has, per key array that was asked for, the row of
    ``weight`` of each key, int64 ``[N]``; ``rows`` are the table's rows, int32 ``[U]``, -1 for keys that it does not hold.
    """

    weight: torch.Tensor
    places: list[torch.Tensor]
    rows: Rows

    def of(self, use: int) -> torch.Tensor:
        """Return the vectors of the ``use``-th key array, ``[N, D]``."""
        return torch.nn.functional.embedding(self.places[use], self.weight)


class EmbeddingTable:
    """Vectors for 64-bit ids.

    A key's first vector is a function of (seed, name, key), so a key that was never learned is scored with the vector that it
    would be admitted with: scoring and training agree, and scoring changes nothing. Key 0 (missing) is the zero vector.

    Args:
        name: part of the seed and of messages.
        config: dim, rate, bounds.
        seed: of the initial vectors.
        device: where weights live; the index is always on the CPU.
    """

    def __init__(self, name: str, config: TableConfig, seed: int = 0, device: str = "cpu") -> None:
        if config.dim < 1:
            raise ValueError(f"table {name!r}: dim = {config.dim} must be at least 1")
        self.name = name
        self.config = config
        self.device = torch.device(device)
        digest = hashlib.sha256(f"{name}\0{seed}".encode()).digest()
        self._seed = int.from_bytes(digest[:8], "little") >> 1
        self.index = RowIndex(name, config.max_rows)
        self._pending: Gathered | None = None
        self._weight = torch.zeros(self.index.capacity, config.dim, device=self.device)
        self._accumulated = torch.zeros(self.index.capacity, device=self.device)

    def __len__(self) -> int:
        """Return how many keys the table holds."""
        return len(self.index)

    def gather(self, *keys: Keys, learn: bool = False, ts: int = 0) -> Gathered:
        """Look up several key arrays with one dedupe for all of them.

        Args:
            keys: int64 arrays, any lengths; 0 is missing.
            learn: admit keys that are new, count uses, and let the result collect a gradient for :meth:`apply_gradients`.
            ts: event time in ms, kept as the rows' age when learning.
        """
        flat = np.concatenate(keys) if len(keys) != 1 else np.ascontiguousarray(keys[0])
        if learn:
            rows, new = self.index.find_or_admit(flat)
            self._initialise(new)
        else:
            rows = self.index.find(flat)
        unique, inverse = self.index.dedupe(rows)
        held = unique if learn else unique.clip(min=0)
        weight = self._weight.index_select(0, self._on_device(held))
        if not learn and (unknown := unique < 0).any():
            # dedupe keeps unknown keys one entry each, in the order in which they stand in `flat`
            weight[self._on_device(unknown)] = self._initial(flat[rows < 0])
        ends = [0, *itertools.accumulate(map(len, keys))]
        places = [self._on_device(inverse[start:end]) for start, end in itertools.pairwise(ends)]
        gathered = Gathered(weight, places, unique)
        if learn:
            self.index.touch(unique, ts)
            weight.requires_grad_()
            self._pending = gathered
        return gathered

    def apply_gradients(self) -> None:
        """Take one step of row-wise Adagrad on the rows of the last learning :meth:`gather`."""
        if self._pending is None:
            raise RuntimeError(f"table {self.name!r}: apply_gradients needs a gather(learn=True) before it")
        (weight, _, rows), self._pending = self._pending, None
        if weight.grad is None:
            return
        options = self.config.rate, self.config.eps, self.config.keep
        if self.device.type == "cpu":
            grad = weight.grad.contiguous().numpy()
            rowwise_adagrad(self._weight.numpy(), self._accumulated.numpy(), rows, grad, *options)
        else:
            rowwise_adagrad_torch(self._weight, self._accumulated, self._on_device(rows), weight.grad, *options)

    def statistics(self, keys: Keys) -> tuple[Keys, Keys]:
        """Return (count of learned batches, ts of the first) of keys, int64 ``[N]`` each; 0 for unknown keys."""
        rows = self.index.find(keys)
        known, safe = rows > 0, rows.clip(min=0)
        return np.where(known, self.index.count[safe], 0), np.where(known, self.index.first_ts[safe], 0)

    def _on_device(self, array: npt.NDArray[Any]) -> torch.Tensor:
        return torch.from_numpy(array).to(self.device)

    def _initial(self, keys: Keys) -> torch.Tensor:
        vectors = np.empty((len(keys), self.config.dim), np.float32)
        probing.initial(keys, self._seed, self.config.initial_scale, vectors)
        return self._on_device(vectors)

    def _initialise(self, rows: Rows) -> None:
        if self.index.capacity > len(self._weight):
            self._weight, self._accumulated = (
                torch.cat([old, torch.zeros(self.index.capacity - len(old), *old.shape[1:], device=self.device)])
                for old in (self._weight, self._accumulated)
            )
        if len(rows) and self.device.type == "cpu":
            keys, options = self.index.keys, self.config
            probing.initialise(rows, keys, self._seed, options.initial_scale, self._weight.numpy())
            self._accumulated.numpy()[rows] = options.initial_accumulated
        elif len(rows):
            where = self._on_device(rows).long()
            self._weight[where] = self._initial(self.index.keys[rows])
            self._accumulated[where] = self.config.initial_accumulated

    def state(self) -> State:
        """Return everything that must survive, slot for slot, as arrays."""
        n = self.index.n
        weight, accumulated = self._weight[:n].cpu().numpy(), self._accumulated[:n].cpu().numpy()
        return {**self.index.state(), "weight": weight, "accumulated": accumulated}

    def load_state(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Become the table that returned ``state``.

        Raises:
            ValueError: the vectors are of another dim, or more than ``max_rows``.
        """
        n, dim = state["weight"].shape
        if dim != self.config.dim:
            raise ValueError(
                f"table {self.name!r}: the checkpoint has dim {dim}, the config dim = {self.config.dim}; "
                "resume with the config that the run was started with"
            )
        self.index.load_state(state)
        self._pending = None
        self._weight = torch.zeros(self.index.capacity, dim, device=self.device)
        self._accumulated = torch.zeros(self.index.capacity, device=self.device)
        self._weight[:n] = self._on_device(np.array(state["weight"]))
        self._accumulated[:n] = self._on_device(np.array(state["accumulated"]))

    def describe(self) -> dict[str, Any]:
        """Return rows, evictions and bytes."""
        size = self.index.nbytes + 4 * (self._weight.numel() + self._accumulated.numel())
        return {"rows": len(self), "dim": self.config.dim, "evicted": self.index.evicted_total, "bytes": size}
