"""GraphNodes: what one node type of EGIN keeps between batches (vectors, biases, a queue of ids) and its edge losses.

Legend: ``U`` distinct ids of the type in a batch, ``N`` nodes (entries of lengthened sequences), ``M`` negatives, ``D`` dim.
"""

from __future__ import annotations

import msgspec
import numpy as np
import torch

from learners.edge_loss import LogQ, Nodes, edge_loss
from learners.gather import rows
from learners.graph.biased import biased
from learners.graph.edges import Edges, Positions
from learners.models import ModelContext
from learners.tables import Distinct, EmbeddingTable, Gathered, TableConfig
from learners.tables.index import Keys
from negative_queues import IdQueue, draw_key

NOW, PAST, DRAWN = 0, 1, -1
"""Uses of a gather of graph vectors: candidates or current query, history, negatives."""


class NodeOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Options of a node type."""

    table: TableConfig
    own: bool
    """Whether graph vectors have a table of their own."""
    bias: bool
    """Whether a node has a scalar that is added to its logit as a second end."""
    queue: int
    n_negatives: int
    log_q: LogQ
    temperature: float


class GraphNodes:
    """State of one node type.

    Args:
        kind: ``item`` or ``query``.
        options: see :class:`NodeOptions`.
        shared: the click model's table of the type, used where there is no own one.
        context: name, seed and device of the model.
    """

    def __init__(self, kind: str, options: NodeOptions, shared: EmbeddingTable, context: ModelContext) -> None:
        self.kind, self.options, self.context = kind, options, context
        self.own = self._table("graph", options.table) if options.own else None
        self.bias = self._table("bias", msgspec.structs.replace(options.table, dim=1)) if options.bias else None
        self.table = self.own or shared
        self.queue = IdQueue(options.queue)

    def _table(self, name: str, config: TableConfig) -> EmbeddingTable:
        return EmbeddingTable(f"{self.context.name}/{name}.{self.kind}", config, self.context.seed, self.context.device)

    @property
    def tables(self) -> dict[str, EmbeddingTable]:
        """The tables that are this type's alone, by name."""
        named = {f"graph.{self.kind}": self.own, f"bias.{self.kind}": self.bias}
        return {name: table for name, table in named.items() if table is not None}

    def draw(self, step: int) -> Keys:
        """Return the negatives of a step, ``[M]``; none while the queue is empty."""
        key = draw_key(self.context.seed, self.context.name, f"negatives.{self.kind}", step)
        return self.queue.draw(self.options.n_negatives, key)

    def nodes(self, vectors: Gathered, source: Positions, ts: int) -> BatchNodes:
        """Return the nodes of a batch being learned.

        Args:
            vectors: of the type; uses as in :data:`NOW`, :data:`PAST`, :data:`DRAWN`.
            source: where each node stands in (history, now), ``[N]``.
            ts: event time of the batch, ms.
        """
        ids = vectors.keys
        past, now, at = (vectors.places[use].cpu().numpy() for use in (PAST, NOW, DRAWN))
        drawn = vectors.places[DRAWN]
        if self.bias is None:
            first = second = vectors.weight
            negatives = rows(second, drawn)
        else:
            bias = self.bias.look_up(Distinct.of_distinct(ids), learn=True, ts=ts).weight  # [U, 1]
            first, second, negatives = biased(vectors.weight, bias, drawn)
        log_p = None if self.options.log_q == "none" else self.queue.log_probability(ids)
        negative = Nodes(negatives, ids[at], None if log_p is None else log_p[at])
        places = np.concatenate([past, now])[source]
        return BatchNodes(Nodes(first, ids), Nodes(second, ids, log_p), negative, places, self.options)


class BatchNodes(msgspec.Struct, frozen=True):
    """Nodes of one type in a batch: as first ends, as second ends, as negatives."""

    first: Nodes
    second: Nodes
    negative: Nodes
    places: Positions
    """Row of each node among the ids of the batch, ``[N]``."""
    options: NodeOptions

    def loss(self, edges: Edges, to: BatchNodes) -> torch.Tensor:
        """Return the mean softmax loss of edges from these nodes to others, with the others' negatives."""
        rows = Edges(self.places[edges.anchor], to.places[edges.positive])
        return edge_loss(
            rows,
            self.first,
            to.second,
            to.negative,
            one_type=self is to,
            temperature=self.options.temperature,
            log_q=self.options.log_q,
        )
