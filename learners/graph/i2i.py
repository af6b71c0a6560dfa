"""item2item edges: neighbours in the click sequence (EGIN section 3.1 and Algorithm 1).

The click sequence is not cut into sessions. Algorithm 1's window ``C[j - w : j + w]`` contains ``j`` itself: here an edge has
two different entries of two different ids.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from learners.graph.edges import Edges, GraphError, Mode, Positions, find_pairs, side
from learners.samples import Ragged
from negative_queues.draws import DrawKey

__all__ = ["i2i_edges"]


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
    entries = side(item.values, item.offsets, None, fresh, mode, "i2i item")
    if keep is not None:
        return _kept_edges(item, window, entries.fresh, keep, cap, key)
    low, high = np.empty(len(entries.ids), np.int64), np.empty(len(entries.ids), np.int64)
    _window_ranges(entries.offsets, window, low, high)
    return find_pairs(entries, entries, low, high, cap, key).both_ways()


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


@numba.njit(cache=True, nogil=True)
def _window_ranges(offsets: Positions, window: int, low: Positions, high: Positions) -> None:
    """The older ends of entry ``k``: the ``window`` entries before it."""
    for row in range(len(offsets) - 1):
        for k in range(offsets[row], offsets[row + 1]):
            low[k] = max(offsets[row], k - window)
            high[k] = k
