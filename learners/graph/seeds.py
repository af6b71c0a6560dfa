"""The seeds sequence: clicks that fit the current query's intention, mixed into the click sequences (EGIN section 4.6.2).

The paper builds item2item edges from 80% click sequence and 20% seeds sequence, without saying what is drawn. Read here: each
request is drawn whole, with probability 0.2 its item2item edges come from its seeds sequence, else from its click sequence. The
predicted intention stands for itself in the logs as the categories of the current query.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from learners.graph.edges import GraphError
from learners.samples import Ragged
from negative_queues.draws import DrawKey, draw_uniform

__all__ = ["seed_mix"]


def seed_mix(
    category: Ragged, query_category: npt.NDArray[Any], share_seed: float = 0.2, key: DrawKey | None = None
) -> npt.NDArray[np.bool_]:
    """Return which entries stay, bool ``[N]``: the ``keep`` of :func:`~learners.graph.i2i.i2i_edges`.

    A request that is drawn keeps the entries whose category is one of the current query's; others, and requests whose query
    has no known category, keep all. An entry of unknown category (0) is no seed.

    Args:
        category: of each click, ``[N]`` over ``R`` sequences.
        query_category: of the current query, ``[R, K]``, 0 pads; all 0 where the log has no queries: no request is drawn then.
        share_seed: probability that a request is drawn, 0 to 1.
        key: of the draw; needed unless the share is 0 or 1.

    Raises:
        GraphError: a share out of range, no key, or shapes that do not fit.
    """
    rows = len(category.offsets) - 1
    if not 0 <= share_seed <= 1:
        raise GraphError(f"share_seed must be 0 to 1, got {share_seed}; the paper uses 0.2")
    if query_category.ndim != 2 or len(query_category) != rows:
        raise GraphError(f"query_category must be [R, K] with R = {rows} requests, got {query_category.shape}")
    if 0 < share_seed < 1:
        if key is None:
            raise GraphError(f"share_seed {share_seed} needs the key of its draw")
        drawn = draw_uniform(key, rows) < share_seed
    else:
        drawn = np.full(rows, share_seed == 1)
    drawn &= (query_category != 0).any(axis=1)
    row = np.repeat(np.arange(rows), category.lengths)
    seed = (category.values[:, None] == query_category[row]).any(axis=1) & (category.values != 0)
    return np.asarray(seed | ~drawn[row], np.bool_)
