"""Accidental hits: negatives that are not negatives, because they share the positive's item, its user or its request.

In a stream they are the norm: hot items fill the queue, and a user's session is all over a batch. What is left out of the
denominator gets no gradient.

Letters: ``B`` rows (a query and its positive each), ``N`` negatives.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

__all__ = ["accidental_hits"]


def accidental_hits(rows: Mapping[str, Tensor], negatives: Mapping[str, Tensor], by: Iterable[str]) -> Tensor | None:
    """Return which negatives each row must leave out, bool ``[B, N]``; None where that is none of them.

    A negative is a hit where any of the columns is equal and not 0 ("unknown" equals nothing). Only negatives that are a hit
    of some row are compared with all rows.

    Args:
        rows: column -> int64 ``[B]``, of the positives.
        negatives: column -> int64 ``[N]``.
        by: columns to compare: ``item``, ``user``, ``request``, ...

    Raises:
        ValueError: a column is missing on either side.

    >>> rows = {"item": torch.tensor([7, 8]), "user": torch.tensor([1, 0])}
    >>> negatives = {"item": torch.tensor([7, 9, 9]), "user": torch.tensor([0, 1, 0])}
    >>> accidental_hits(rows, negatives, ["item", "user"])
    tensor([[ True,  True, False],
            [False, False, False]])
    """
    hits: Tensor | None = None
    for name in by:
        if name not in rows or name not in negatives:
            raise ValueError(f"cannot mask by {name!r}: rows have {sorted(rows)}, negatives have {sorted(negatives)}")
        mine, theirs = rows[name], negatives[name]
        shared = (torch.isin(theirs, mine) & (theirs != 0)).nonzero().squeeze(1)
        if not len(shared):
            continue
        if hits is None:
            hits = torch.zeros(len(mine), len(theirs), dtype=torch.bool, device=theirs.device)
        hits[:, shared] |= mine[:, None] == theirs[shared][None, :]
    return hits
