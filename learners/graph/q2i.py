"""query2item edges: a query and the items clicked around it (EGIN section 3.1 and Algorithm 2).

The paper says two things. Its text takes clicks "within a time window before or after this query" (rule ``around``); its
Algorithm 2 only those after it, ``0 < ts_item - ts_query < T`` (rule ``algorithm2``, the default). Both filter by category.
"""

from __future__ import annotations

from typing import Literal

from learners.graph.edges import Edges, GraphError, Mode, TimedNodes, check_timespan, frozen
from learners.graph.near import near_pairs
from negative_queues.draws import DrawKey

__all__ = ["ItemRule", "q2i_edges"]

ItemRule = Literal["algorithm2", "around"]


def q2i_edges(
    query: TimedNodes,
    item: TimedNodes,
    timespan_ms: int,
    rule: ItemRule = "algorithm2",
    mode: Mode = "all",
    cap: int | None = None,
    key: DrawKey | None = None,
) -> tuple[Edges, Edges]:
    """Return the edges query -> item and item -> query; a pair is in both, the negatives of each are of its second type.

    Joined are a query and an item of the same request with ``0 < ts_item - ts_query < T`` (``algorithm2``) or
    ``|ts_item - ts_query| < T`` (``around``) whose category sets intersect; where one is unknown, time alone decides.

    Args:
        query: the query sequences.
        item: the click sequences of the same requests.
        timespan_ms: ``T > 0``.
        rule: see above.
        mode: ``all`` pairs, or ``fresh``: those with an end that is fresh in its sequence, so that over a user's requests each
            pair comes once, whichever end came last.
        cap: at most so many edges per request, both directions together, drawn without bias.
        key: of that draw.

    Returns:
        ``(query -> item, item -> query)``: positions in the query values and in the item values.

    Raises:
        GraphError: an option or a shape that does not fit.
    """
    check_timespan(timespan_ms)
    if rule not in ("algorithm2", "around"):
        raise GraphError(f"rule of q2i must be 'algorithm2' or 'around', got {rule!r}")
    queries, items = query.side(mode, "q2i query"), item.side(mode, "q2i item")
    if len(queries.offsets) != len(items.offsets):
        raise GraphError(f"query has {len(queries.offsets) - 1} requests, item {len(items.offsets) - 1}")
    back = timespan_ms if rule == "around" else 0
    pairs = near_pairs(queries, frozen(query.ts), items, frozen(item.ts), back, timespan_ms, cap, key)
    return Edges(pairs.a, pairs.b), Edges(pairs.b, pairs.a)
