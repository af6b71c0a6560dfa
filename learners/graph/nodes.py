"""GraphNodes: what one node type of EGIN keeps between batches (vectors, biases, a queue of ids) and its edge losses.

Legend: ``U`` distinct ids of the type in a batch, ``N`` nodes (entries of lengthened sequences), ``M`` negatives, ``D`` dim.
"""

from __future__ import annotations

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from learners.device import compiled, place
from learners.edge_loss import NONE, LogQ, Nodes, Rows, Scratch, edge_loss, edge_loss_plain
from learners.gather import rows
from learners.graph.edges import Edges, Positions
from learners.models import ModelContext
from learners.tables import Distinct, EmbeddingTable, Gathered, TableConfig
from learners.tables.index import Keys
from learners.tape import recording
from negative_queues import IdQueue, draw_key
from negative_queues.kernels import kernel

Floats = npt.NDArray[np.float32]

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
        self._scratch = Scratch()

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
        past, now, drawn = (vectors.places[use].cpu().numpy() for use in (PAST, NOW, DRAWN))
        bias = None
        if self.bias is not None:
            bias = self.bias.look_up(Distinct.of_distinct(ids), learn=True, ts=ts).weight
        log_p = None if self.options.log_q == "none" else self.queue.log_probability(ids)
        places = np.empty(len(source), np.int64)
        _places(past, now, source, places)
        return BatchNodes(vectors.weight, bias, ids, drawn, log_p, places, self.options, self._scratch)


@kernel
def _places(past: Positions, now: Positions, source: Positions, out: Positions) -> None:
    """Write the places at ``source [N]`` of those of the history and, behind them, those of now."""
    for node in range(len(source)):
        at = source[node]
        out[node] = past[at] if at < len(past) else now[at - len(past)]


class BatchNodes:
    """Nodes of one type in a batch being learned.

    Args:
        vectors: of the distinct ids, ``[U, D]``, a leaf.
        bias: theirs as second ends, ``[U, 1]``, a leaf; None where there is none.
        ids: int64 ``[U]``.
        drawn: rows of the negatives, int64 ``[M]``.
        log_p: log probability of each id in one draw, ``[U]``; only for logQ.
        places: row of each node, ``[N]``.
        options: of the type.
        scratch: of the type.
    """

    def __init__(
        self,
        vectors: Tensor,
        bias: Tensor | None,
        ids: Keys,
        drawn: Positions,
        log_p: Floats | None,
        places: Positions,
        options: NodeOptions,
        scratch: Scratch,
    ) -> None:
        self.vectors, self.bias, self.ids, self.drawn, self.log_p, self.places = vectors, bias, ids, drawn, log_p, places
        self.options, self.scratch = options, scratch
        self._rows: Rows | None = None

    def loss(self, edges: Edges, to: BatchNodes, weight: float) -> Tensor | float:
        """Return the mean softmax loss of edges from these nodes to others, with the others' negatives.

        On the CPU its gradients, times the weight, are with the leaves at once; elsewhere it is for autograd, unweighted.
        """
        if not compiled(self.vectors.device):
            return self.plain_loss(edges, to)
        return edge_loss(
            edges,
            self._own_rows(),
            to._own_rows(),
            self.scratch,
            weight=weight,
            temperature=self.options.temperature,
            log_q=self.options.log_q,
        )

    def plain_loss(self, edges: Edges, to: BatchNodes) -> Tensor:
        """Return the same in plain torch, for autograd."""
        first, second = self.vectors, to.vectors
        if to.bias is not None:  # what is added to the product is one more component of it
            first, second = torch.cat([first, torch.ones_like(first[:, :1])], 1), torch.cat([second, to.bias], 1)
        drawn = place(to.drawn, second.device)
        negative = Nodes(rows(second, drawn), to.ids[to.drawn], None if to.log_p is None else to.log_p[to.drawn])
        return edge_loss_plain(
            Edges(self.places[edges.anchor], to.places[edges.positive]),
            Nodes(first, self.ids),
            Nodes(second, to.ids, to.log_p),
            negative,
            one_type=self is to,
            temperature=self.options.temperature,
            log_q=self.options.log_q,
        )

    def _own_rows(self) -> Rows:
        if self._rows is None:
            of_bias, bias = NONE, NONE
            if self.bias is not None:
                of_bias, bias = _sums(self.bias).reshape(-1), self.bias.detach().numpy().reshape(-1)
            vectors = self.vectors.detach().numpy()
            self._rows = Rows(vectors, bias, self.places, self.drawn, _sums(self.vectors), of_bias, self.log_p)
        return self._rows


def _sums(leaf: Tensor) -> Floats:
    """Return the array in which the gradient by a leaf is summed: the tape's, else the one that autograd's backward adds to."""
    tape = recording()
    if tape is not None:
        return tape.sums(leaf)
    if leaf.grad is None:
        leaf.grad = torch.zeros_like(leaf)
    found: Floats = leaf.grad.numpy()
    return found
