"""Several tables of one width looked up into one matrix: one leaf of autograd and one gather for all of them.

Legend: ``T`` tables, ``N`` entries of each one's use, ``U`` distinct keys over all of them, ``D`` dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numba
import numpy as np
import torch

from learners import gather
from learners.tables.distinct import Distinct, Keys, Rows
from learners.tables.probing import dedupe
from learners.tables.storage import power_of_two
from learners.tables.table import EmbeddingTable

__all__ = ["Asked", "asked_together", "look_up_together"]


class Asked(NamedTuple):
    """What is asked of some tables: a function of the batch alone."""

    distinct: list[Distinct]
    bounds: list[int]
    """Where the rows of each table begin among all, and where they end, ``[T + 1]``."""
    places: Keys
    """Row of each entry and table, ``[N * T]``."""


def asked_together(columns: Sequence[Keys]) -> Asked:
    """Dedupe the keys of some tables, equally many, ``[N]`` each."""
    n, n_tables = len(columns[0]), len(columns)
    keys = np.empty((n_tables, n), np.int64)
    for at, column in enumerate(columns):
        keys[at] = column
    unique, own, places = np.empty(n * n_tables, np.int64), np.empty((n_tables, n), np.int64), np.empty((n, n_tables), np.int64)
    bounds, slots = np.zeros(n_tables + 1, np.int64), np.empty((n_tables, power_of_two(2 * n + 1)), np.int32)
    _dedupe_each(keys, slots, unique, own, places, bounds)
    ends = bounds.tolist()
    distinct = [
        Distinct(unique[start:end], [torch.from_numpy(each)], end - start, hashed)
        for start, end, each, hashed in zip(ends, ends[1:], own, slots, strict=False)
    ]
    return Asked(distinct, ends, places.reshape(-1))


@numba.njit(cache=True, nogil=True)
def _dedupe_each(keys: Keys, slots: Rows, unique: Keys, own: Keys, places: Keys, bounds: Keys) -> None:
    slots[:] = -1
    for table in range(len(keys)):
        start = bounds[table]
        bounds[table + 1] = start + dedupe(keys[table], slots[table], unique[start:], own[table], 0)
        for i in range(keys.shape[1]):
            places[i, table] = start + own[table, i]


def look_up_together(tables: Sequence[EmbeddingTable], asked: Asked, *, learn: bool = False, ts: int = 0) -> torch.Tensor:
    """Return the vectors of the tables side by side, ``[N, T * D]``; arguments as of :meth:`EmbeddingTable.look_up`."""
    device, dim = tables[0].device, tables[0].config.dim
    weight = torch.empty(asked.bounds[-1], dim, device=device)
    if learn:
        weight.requires_grad_()
    for table, distinct, start in zip(tables, asked.distinct, asked.bounds, strict=False):
        table.look_up_into(weight, start, distinct, learn=learn, ts=ts)
    places = torch.from_numpy(asked.places).to(device)
    return gather.rows(weight, places).view(-1, len(tables) * dim)
