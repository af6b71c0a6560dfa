"""TorchTable: the table once more in plain torch, index and all, on any device: the oracle of the kernels.

It keeps the keys of all rows sorted beside their rows and looks up by bisection. What it returns and what it becomes are the
same as for :class:`learners.tables.EmbeddingTable`: the same rows, and vectors equal within rounding. Admission draws and
counts are made on the CPU by the same code; eviction and expiry are not part of it, so a full table is an error.
"""

from __future__ import annotations

import itertools

import numpy as np
import torch

from learners.tables import optimisers
from learners.tables.admission import admission_of
from learners.tables.config import TableConfig, check
from learners.tables.table import EmbeddingTable, Gathered

_GOLDEN, _FIRST, _SECOND = (value - (1 << 64) for value in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


class TorchTable:
    """Vectors for 64-bit ids, in torch alone.

    Args:
        name: as for the table that it is the twin of.
        config: without expiry; ``max_rows`` is a bound that must not be met.
        seed: of the initial vectors.
        device: where everything lives.
    """

    def __init__(self, name: str, config: TableConfig, seed: int = 0, device: str = "cpu") -> None:
        check(name, config)
        if config.expire_after_ms is not None:
            raise ValueError(f"table {name!r}: the torch twin does not expire rows; leave expire_after_ms out")
        self.name, self.config, self.device = name, config, torch.device(device)
        self._seed = EmbeddingTable.seed_of(name, seed)
        self._admission = admission_of(config, self._seed)
        self.keys = torch.zeros(1, dtype=torch.int64, device=self.device)
        """Key of every row; row 0 is the missing id."""
        self.columns = {
            part: torch.zeros(1, *shape, device=self.device)
            for part, shape in {"weight": (config.dim,), **optimisers.columns(config)}.items()
        }
        self._pending: Gathered | None = None

    def find(self, keys: torch.Tensor) -> torch.Tensor:
        """Return the row of every key, int64 ``[N]``; -1 where there is none."""
        ordered, rows = self.keys.sort()
        at = torch.searchsorted(ordered, keys).clamp(max=len(ordered) - 1)
        return torch.where(ordered[at] == keys, rows[at], -1)

    def gather(self, *keys: torch.Tensor, learn: bool = False) -> Gathered:
        """Look up several key tensors, int64 on the device, with one dedupe; see :meth:`EmbeddingTable.gather`."""
        flat = torch.cat(keys)
        rows = self.find(flat)
        if learn and bool((rows < 0).any()):
            self._admit(flat[rows < 0])
        distinct, inverse = _dedupe(flat)
        rows = self.find(distinct)
        weight = self.columns["weight"].index_select(0, rows.clamp(min=0))
        weight[rows < 0] = self._initial(distinct[rows < 0])
        ends = [0, *itertools.accumulate(map(len, keys))]
        places = [inverse[a:b] for a, b in itertools.pairwise(ends)]
        n_first = int(places[0].max()) + 1 if len(places[0]) else 0
        gathered = Gathered(weight, places, distinct.cpu().numpy(), rows.int().cpu().numpy(), n_first)
        if learn:
            weight.requires_grad_()
            self._pending = gathered
        return gathered

    def apply_gradients(self) -> None:
        """Take one step on the rows of the last learning :meth:`gather`."""
        if self._pending is None:
            raise RuntimeError(f"table {self.name!r}: apply_gradients needs a gather(learn=True) before it")
        pending, self._pending = self._pending, None
        if (grad := pending.weight.grad) is not None:
            at = torch.from_numpy(pending.rows).to(self.device)
            kept = {name: column for name, column in self.columns.items() if name != "weight"}
            optimisers.step_torch(self.config, self.columns["weight"], kept, at, grad)

    def _admit(self, unknown: torch.Tensor) -> None:
        new = torch.from_numpy(self._admission.admit(unknown.cpu().numpy().astype(np.int64))).to(self.device)
        if len(self.keys) + len(new) > self.config.max_rows:
            raise ValueError(f"table {self.name!r}: max_rows = {self.config.max_rows} is met; the torch twin evicts nothing")
        self.keys = torch.cat([self.keys, new])
        for name, column in self.columns.items():
            first = (
                self._initial(new)
                if name == "weight"
                else column.new_full((len(new), *column.shape[1:]), optimisers.first_value(self.config))
            )
            self.columns[name] = torch.cat([column, first])

    def _initial(self, keys: torch.Tensor) -> torch.Tensor:
        """Return the first vectors of keys, ``[N, D]``: SplitMix64 as in :mod:`negative_queues.draws`, in int64."""
        base = _mix(self._seed ^ _mix(keys + _GOLDEN))
        counter = torch.arange(1, self.config.dim + 1, device=self.device) * _GOLDEN
        unit = _shifted(_mix(base.unsqueeze(1) + counter), 11).double() / (1 << 53)
        return ((2 * unit - 1) * self.config.initial_scale).float()


def _dedupe(keys: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return distinct keys in order of appearance and each one's place."""
    n = len(keys)
    values, inverse = torch.unique(keys, return_inverse=True)
    first = torch.full((len(values),), n, device=keys.device)
    first = first.scatter_reduce(0, inverse, torch.arange(n, device=keys.device), "amin")
    order = first.argsort()
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order), device=keys.device)
    return values[order], place[inverse]


def _mix(x: torch.Tensor) -> torch.Tensor:
    x = (x ^ _shifted(x, 30)) * _FIRST
    x = (x ^ _shifted(x, 27)) * _SECOND
    return x ^ _shifted(x, 31)


def _shifted(x: torch.Tensor, by: int) -> torch.Tensor:
    """Return a logical shift to the right."""
    return (x >> by) & ((1 << (64 - by)) - 1)
