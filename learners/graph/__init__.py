"""Edges out of behaviour sequences: the light-weight subgraph sampling of EGIN (section 3.2)."""

from learners.graph.edges import Edges, GraphError, Mode, TimedNodes
from learners.graph.i2i import i2i_edges
from learners.graph.q2i import ItemRule, q2i_edges
from learners.graph.q2q import QueryRule, q2q_edges
from learners.graph.seeds import seed_mix
from learners.graph.subsample import keep_probability, subsample

__all__ = [
    "Edges",
    "GraphError",
    "ItemRule",
    "Mode",
    "QueryRule",
    "TimedNodes",
    "i2i_edges",
    "keep_probability",
    "q2i_edges",
    "q2q_edges",
    "seed_mix",
    "subsample",
]
