"""query2query edges: queries of one search task (EGIN section 3.1 and Algorithm 2).

The paper says two things. Its text cuts the query sequence into sessions "based on semantic similarity and time" and makes
each a complete graph (rule ``session``); its Algorithm 2 joins two queries that are less than ``T`` apart and share a category
(rule ``algorithm2``, the default). What stands for semantic similarity here is a shared category.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from learners.graph.edges import Edges, GraphError, Mode, Positions, TimedNodes, alike, check_timespan, find_pairs, frozen
from learners.graph.near import near_pairs
from negative_queues.draws import DrawKey
from negative_queues.kernels import kernel

__all__ = ["QueryRule", "q2q_edges"]

QueryRule = Literal["algorithm2", "session"]


def q2q_edges(
    query: TimedNodes,
    timespan_ms: int,
    rule: QueryRule = "algorithm2",
    mode: Mode = "all",
    cap: int | None = None,
    key: DrawKey | None = None,
) -> Edges:
    """Return the edges between queries of one sequence, in both directions; equal ids are never joined.

    - ``algorithm2``: ``0 < ts[k] - ts[j] < T`` and the category sets intersect; where one of the two is unknown, time alone
      decides.
    - ``session``: a new session starts where ``ts[k] - ts[k - 1] >= T``, or where the categories of ``k`` and ``k - 1`` are
      known and share nothing; all queries of a session are joined, also at equal times. Entries that ``keep`` takes out
      still hold their session together.

    Args:
        query: the query sequences.
        timespan_ms: ``T > 0``.
        rule: see above.
        mode: ``all`` pairs, or only those whose newer end is ``fresh``: over a user's requests each pair comes once.
        cap: at most so many edges per request, drawn without bias (see :func:`~learners.graph.edges.find_pairs`).
        key: of that draw.

    Raises:
        GraphError: an option or a shape that does not fit.
    """
    check_timespan(timespan_ms)
    if rule not in ("algorithm2", "session"):
        raise GraphError(f"rule of q2q must be 'algorithm2' or 'session', got {rule!r}")
    entries, ts = query.side(mode, "q2q query"), frozen(query.ts)
    if rule == "algorithm2":
        return near_pairs(entries, ts, entries, ts, timespan_ms, 0, cap, key).both_ways()
    low, high = np.empty(len(ts), np.int64), np.empty(len(ts), np.int64)
    _session_ranges(entries.offsets, ts, entries.categories, timespan_ms, low, high)
    return find_pairs(entries, low, high, cap, key).both_ways()


@kernel
def _session_ranges(
    offsets: Positions, ts: Positions, categories: Positions, timespan: int, low: Positions, high: Positions
) -> None:
    """The older ends of entry ``k``: all before it in its session."""
    for row in range(len(offsets) - 1):
        start = offsets[row]
        for k in range(offsets[row], offsets[row + 1]):
            if k > start and (ts[k] - ts[k - 1] >= timespan or not alike(categories, k, categories, k - 1)):
                start = k
            low[k], high[k] = start, k
