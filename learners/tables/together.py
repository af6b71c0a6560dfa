"""Several tables of one width looked up into one matrix: one leaf of autograd and one gather for all of them.

Legend: ``T`` tables, ``N`` entries of each one's use, ``U`` distinct keys over all of them, ``D`` dim.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from learners import gather
from learners.tables.distinct import Distinct
from learners.tables.table import EmbeddingTable

__all__ = ["Asked", "asked_together", "look_up_together"]


class Asked(NamedTuple):
    """What is asked of some tables: a function of the batch alone."""

    distinct: tuple[Distinct, ...]
    bounds: list[int]
    """Where the rows of each table begin among all, and where they end, ``[T + 1]``."""
    places: npt.NDArray[np.int64]
    """Row of each entry and table, ``[N * T]``."""


def asked_together(distinct: Sequence[Distinct]) -> Asked:
    """Return the first uses of some tables, equally long, as one."""
    bounds = [0, *itertools.accumulate(len(each.keys) for each in distinct)]
    places = np.empty((len(distinct[0].places[0]), len(distinct)), np.int64)
    for at, (each, start) in enumerate(zip(distinct, bounds, strict=False)):
        np.add(each.places[0].numpy(), start, out=places[:, at])
    return Asked(tuple(distinct), bounds, places.reshape(-1))


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
