"""What the vectors of a table know of categories: average cosine within and between them (EGIN, Table 5 and Figure 4).

The paper draws a million pairs of items; here it is all pairs of a sample of items. Letters: ``N`` items, ``D`` dim.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from learners.learner import Learner

LEARNED = 10
"""Items that were in fewer learned batches are left out: their vectors are still nearly those that they started from."""
MOST_ITEMS = 1_500
MATRIX_CATEGORIES, MATRIX_ITEMS = 6, 6
"""Size of the similarity matrix: the categories with most items, and items of each."""

Ids = npt.NDArray[np.int64]
Matrix = npt.NDArray[np.float32]

__all__ = ["LEARNED", "Likeness", "likeness", "tables_likeness"]


class Likeness(NamedTuple):
    """Cosines of item vectors."""

    within: float
    """Mean over pairs of one category; NaN without any."""
    between: float
    """Mean over pairs of two categories."""
    pairs_within: int
    pairs_between: int
    items: int
    matrix: Matrix
    """Cosines of a few items, those of one category next to each other."""
    matrix_categories: Ids
    """Category of each row of the matrix."""


def likeness(vectors: Matrix, categories: Ids) -> Likeness:
    """Return the average cosines and a matrix.

    Args:
        vectors: ``[N, D]``; zero vectors have cosine 0 with all.
        categories: ``[N]``.
    """
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    names, inverse, counts = np.unique(categories, return_inverse=True, return_counts=True)
    sums = np.zeros((len(names), unit.shape[1]))
    np.add.at(sums, inverse, unit)
    # The sum of all cosines of a set is the square of the sum of its unit vectors, each with itself included.
    own = float((unit * unit).sum())
    inside = (float((sums * sums).sum()) - own) / 2
    total = (float((sums.sum(axis=0) ** 2).sum()) - own) / 2
    n_inside = int((counts * (counts - 1) // 2).sum())
    n_between = len(unit) * (len(unit) - 1) // 2 - n_inside
    rows = _matrix_rows(inverse, counts)
    return Likeness(
        inside / n_inside if n_inside else float("nan"),
        (total - inside) / n_between if n_between else float("nan"),
        n_inside,
        n_between,
        len(unit),
        unit[rows] @ unit[rows].T,
        categories[rows],
    )


def _matrix_rows(inverse: Ids, counts: Ids) -> Ids:
    largest = np.argsort(-counts, kind="stable")[:MATRIX_CATEGORIES]
    return np.concatenate([np.flatnonzero(inverse == at)[:MATRIX_ITEMS] for at in largest] or [np.zeros(0, np.int64)])


def tables_likeness(learner: Learner, items: Ids, categories: Ids) -> dict[str, Likeness]:
    """Return the likeness in each table of item vectors that a learner has, by the table's name (``item``, ``graph.item``).

    Args:
        learner: changes nothing.
        items: a sample of distinct items, ``[N]``; at most :data:`MOST_ITEMS` that were learned often enough are used.
        categories: of the items.
    """
    # Looked for by name: importing the networks brings torch, which a run of baselines does without.
    tables: dict[str, Any] = getattr(getattr(learner, "network", None), "tables", {})
    found = {}
    for name in ("item", "graph.item"):
        if (table := tables.get(name)) is not None:
            learned = np.flatnonzero(table.statistics(items)[0] >= LEARNED)[:MOST_ITEMS]
            if len(learned) > 1:
                vectors = table.gather(items[learned]).of(0).detach().cpu().numpy()
                found[name] = likeness(vectors, categories[learned])
    return found
