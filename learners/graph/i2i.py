"""item2item edges: neighbours in the click sequence (EGIN section 3.1 and Algorithm 1).

The click sequence is not cut into sessions. Algorithm 1's window ``C[j - w : j + w]`` contains ``j`` itself: here an edge has
two different entries of two different ids.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from learners.graph.edges import Edges, GraphError, Mode, Positions, check_cap, check_rows, frozen, side, thinned
from learners.samples import Ragged
from negative_queues.draws import DrawKey
from negative_queues.kernels import kernel

__all__ = ["i2i_edges"]

ALL: Positions = frozen(np.zeros(0))
"""Instead of how many entries are new: all of them."""


def i2i_edges(
    item: Ragged,
    window: int,
    fresh: npt.NDArray[Any] | None = None,
    mode: Mode = "all",
    cap: int | None = None,
    key: DrawKey | None = None,
    keep: npt.NDArray[np.bool_] | None = None,
) -> Edges:
    """Return the edges between entries at most ``window`` apart, in both directions.

    Args:
        item: ids ``[N]`` of ``R`` sequences, oldest first; 0 is missing and has no edges, but keeps its place.
        window: ``w >= 1``: ``1 <= |j - k| <= w``; the paper uses 2.
        fresh: so many last entries of each sequence are new, ``[R]``; only for mode ``fresh``.
        mode: ``all`` pairs, or only those whose newer end is ``fresh``: over a user's requests each pair comes once.
        cap: at most so many edges per request, drawn without bias (see :func:`~learners.graph.edges.find_pairs`).
        key: of that draw.
        keep: ``[N]``: entries that are False are taken out *before* the window is laid (the seeds sequence of
            :func:`~learners.graph.seeds.seed_mix`, subsampling); positions stay those of ``item``.

    Raises:
        GraphError: an option or a shape that does not fit.
    """
    if window < 1:
        raise GraphError(f"window must be at least 1, got {window}; the paper uses 2")
    ids, offsets = item
    if keep is not None:
        return _kept_edges(item, window, side(ids, offsets, None, fresh, mode, "i2i item").fresh, keep, cap, key)
    check_rows(ids, offsets, fresh, mode, "i2i item")
    check_cap(cap, key)
    new = ALL if mode == "all" or fresh is None else frozen(fresh)
    pairs, counts = np.empty((2, window * len(ids)), np.int64), np.empty(len(offsets) - 1, np.int64)
    n = _near(frozen(ids), frozen(offsets), new, window, counts, pairs)
    return thinned(pairs, n, counts, cap, key).both_ways()


def _kept_edges(
    item: Ragged, window: int, fresh: Positions, keep: npt.NDArray[np.bool_], cap: int | None, key: DrawKey | None
) -> Edges:
    if len(keep) != len(item.values):
        raise GraphError(f"keep has {len(keep)} entries for {len(item.values)} items")
    kept_before = np.zeros(len(keep) + 1, np.int64)
    np.cumsum(keep, out=kept_before[1:])
    offsets = kept_before[item.offsets]
    kept_fresh = offsets[1:] - kept_before[item.offsets[1:] - fresh]
    places = np.flatnonzero(keep)
    edges = i2i_edges(Ragged(item.values[places], offsets), window, kept_fresh, "fresh", cap, key)
    return Edges(places[edges.anchor], places[edges.positive])


@kernel
def _near(ids: Positions, offsets: Positions, fresh: Positions, window: int, counts: Positions, pairs: Positions) -> int:
    """Write the pairs to ``pairs [2, window N]``, the newer end first, and how many each request has to ``counts [R]``.

    Return how many there are. ``fresh [R]``, or none: all are new.
    """
    n = 0
    for row in range(len(offsets) - 1):
        before, first, end = n, offsets[row], offsets[row + 1]
        for x in range(first if len(fresh) == 0 else end - min(max(fresh[row], 0), end - first), end):
            if ids[x] == 0:
                continue
            # Each pair is written and the place moves on if it counts: which do is hard to guess for a processor's branches.
            for y in range(max(first, x - window), x):
                pairs[0, n], pairs[1, n] = x, y
                n += (ids[y] != 0) & (ids[y] != ids[x])
        counts[row] = n - before
    return n
