"""EGIN: click prediction on a query-item graph that is sampled out of the samples themselves ("Light-weight End-to-End Graph
Interest Network for CTR Prediction in E-commerce Search", cited by section and equation below).

- Subgraph (3.2, Algorithms 1 and 2): :mod:`learners.graph`. The edge loss is a softmax over the positive and 100 negatives
  drawn from queues of a million ids, shared by all edges of a batch whose second end is of that type.
- Multi-interest network (3.3): SimExtract(target item, clicks), SimExtract(query, queries), SimExtract(query, clicks), beside
  the other features, into an MLP.
- ``L = L_CTR + alpha L_i2i + beta L_q2q + gamma L_q2i`` (Eq. 1); L_q2i is the mean of both directions.

Where the paper leaves a choice, it is an option of :class:`Config` or :class:`learners.graph.subgraph.GraphConfig`. What this
model adds to the paper, a switch each: graph vectors in tables of their own (``graph_table``), a bias per node in the edge loss
that takes up its degree (``node_bias``), graph vectors as inputs beside their similarities (``graph_inputs``), and a logit per
position and how lately the user had the candidate (``place_bias``).

Legend: ``R`` requests, ``C`` candidates, ``H`` clicks and ``Q`` queries in histories, ``D`` dim, ``M`` negatives.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from functools import partial
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from learners.batch import CANDIDATES, Batch
from learners.beside import beside
from learners.crossed import crossed
from learners.edge_loss import LogQ
from learners.features import NO_KEYS, Encoded, Inputs, NetworkConfig
from learners.graph import subsample
from learners.graph.fresh import fresh_entries
from learners.graph.nodes import NOW, PAST, GraphNodes, NodeOptions
from learners.graph.subgraph import GraphConfig, prepare_subgraph, subgraph
from learners.learner import Learner, State
from learners.models import ModelContext
from learners.network import ClickNetwork, Forward, NeuralLearner, clicked
from learners.place_bias import PlaceBias
from learners.request_mlp import Part, RequestMLP, SlotPart, distinct
from learners.samples import QUERY
from learners.sim_extract import SimExtract
from learners.tables import Gathered
from learners.tables.index import Keys
from learners.threads import Task
from negative_queues import draw_key

Bools = npt.NDArray[np.bool_]


class Config(NetworkConfig, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Options of ``egin``. The ablations of the paper's Table 4: ``graph``, ``queries``, ``slot_positions`` = false."""

    graph: bool = True
    """Whether there is a graph loss; without it similarities come from the tables that the click loss trains."""
    queries: bool = True
    """Whether queries are nodes and SimExtract sees them."""
    slot_positions: bool = True
    """Whether SimExtract embeds the positions of what it picked."""
    edges: GraphConfig = GraphConfig()
    """Which edges the graph loss learns."""
    alpha: float = 0.05
    """Weight of the i2i loss. The paper does not say its weights; of 0.05, 0.15, 0.3 and 1, the smallest did best or as well on
    each log tried: a row's accumulator is shared, and large edge gradients leave the click loss small steps."""
    beta: float = 0.05
    """Weight of the q2q loss."""
    gamma: float = 0.05
    """Weight of the q2i loss."""
    top_k: int = 10
    """Entries of the history that SimExtract picks, the most similar to the target."""
    n_bins: int = 20
    """Bins of similarity, of equal width over [-1, 1]; one more is for the target itself."""
    slot_dim: int = 10
    """Width of a slot's bin and position embedding; the paper's 10."""
    slot_length: int = 50
    """Positions told apart."""
    graph_table: Literal["own", "shared"] = "own"
    """own: graph vectors beside the click model's; shared: one vector per id for both losses."""
    graph_rate: float = 0.2
    """As ``table_rate``, for graph vectors."""
    graph_keep: float = 1.0
    """As ``table_keep``, for graph vectors."""
    graph_scale: float = 0.1
    """New graph vectors are uniform in [-scale, scale)."""
    graph_inputs: Literal["off", "frozen", "learned"] = "learned"
    """Graph vectors of the target, of its history's mean and newest click, and their products, as inputs; the click loss
    reaches them (learned) or does not (frozen)."""
    node_bias: bool = True
    """A scalar per node that the edge loss learns: what is popular needs no large vector for being a likely neighbour."""
    place_bias: bool = False
    """A logit per pair of position and how lately the user had this very item (:mod:`learners.place_bias`), at ``table_rate``:
    for short logs on which people come back to what they saw."""
    n_negatives: int = 100
    """Ids drawn from a queue per batch, as negatives of all its edges."""
    queue: int = 1_000_000
    """Ids that each queue holds. Where items live for hours (news), a queue of the last hours' clicks gives better contrast."""
    log_q: LogQ = "none"
    """Whether logits of negatives are corrected for how often an id is drawn (logQ), and of the positive too (standard)."""
    temperature: float = 1.0
    """Logits of the edge losses are divided by it."""
    subsample: float = 0.0
    """Threshold of the subsampling of frequent items (section 4.6.1), as a share of the queue; 0 is off."""


class EGIN(ClickNetwork):
    """The graph, its queues and the multi-interest network."""

    uses_torch_threads = False

    def __init__(self, config: Config, context: ModelContext) -> None:
        super().__init__()
        self.config, self.context = config, context
        self.inputs = Inputs(config, context)
        self.tables = dict(self.inputs.tables)
        if not self.inputs.sequences:
            raise ValueError(f"{context.name}: egin needs an item sequence, and these samples have none")
        self.sequence = self.inputs.sequences[0]
        self.has_queries = config.queries and self.inputs.has_query
        kinds = ["i2i"] + ["q2q", "q2i"] * self.has_queries
        self.nodes: dict[str, GraphNodes] = {}
        for kind in ["item"] + ["query"] * self.has_queries:
            self.nodes[kind] = GraphNodes(kind, self._node_options(), self.inputs.tables[kind], context)
            self.tables.update(self.nodes[kind].tables)
        self.similar = torch.nn.ModuleDict({kind: self._sim_extract() for kind in kinds})
        self.on_tape = not config.place_bias  # with it the click loss is of more than the MLP's logits
        self.place: PlaceBias | None = None
        if config.place_bias:
            self.place = PlaceBias(context, self.sequence, config.n_positions, config.table_rate, config.table_keep)
            self.tables["place"] = self.place.table
        width = config.top_k * config.slot_dim
        vectors = 0 if config.graph_inputs == "off" else config.dim
        crossed = len(self.inputs.sequences) * self.inputs.target_dim
        candidate = self.inputs.candidate_dim + crossed + width + 3 * vectors
        request = self.inputs.request_dim + 2 * vectors + width * (len(kinds) - 1)
        self.mlp = RequestMLP(candidate, request, config.hidden, config.products)

    def _node_options(self) -> NodeOptions:
        config = self.config
        table = config.table(config.dim, rate=config.graph_rate, keep=config.graph_keep, initial_scale=config.graph_scale)
        return NodeOptions(
            table=table,
            own=config.graph and config.graph_table == "own",
            bias=config.graph and config.node_bias,
            queue=config.queue if config.graph else 1,
            n_negatives=config.n_negatives if config.graph else 0,
            log_q=config.log_q,
            temperature=config.temperature,
        )

    def _sim_extract(self) -> SimExtract:
        config = self.config
        return SimExtract(config.top_k, config.n_bins, config.slot_length, config.slot_dim, positions=config.slot_positions)

    def loss_weights(self) -> Mapping[str, float]:
        """Return alpha, beta and gamma of Eq. 1."""
        return {"i2i": self.config.alpha, "q2q": self.config.beta, "q2i": self.config.gamma}

    def prepare(self, batch: Batch) -> None:
        """Make the inputs' part, the ids of the nodes, the edges that no draw decides, and what enters the queues."""
        super().prepare(batch)
        batch.offsets(CANDIDATES)
        for kind in self.nodes:
            batch.distinct(*self._columns(kind))
        if self.place is not None:
            self.place.asked(batch)
        if self.config.graph:
            prepare_subgraph(batch, self.sequence, self.config.edges, queries=self.has_queries)
            for kind in self.nodes:
                self._fresh(batch, kind)

    def _fresh(self, batch: Batch, kind: str) -> Keys:
        """Return what enters a queue."""
        ids, of = self._columns(kind)[1], self.sequence if kind == "item" else QUERY
        return batch.block.once(("fresh entries", ids), lambda: fresh_entries(batch, ids, f"{of}.fresh"))

    def forward(self, batch: Batch, learn: bool, step: int) -> Forward:
        """Return logits ``[C]``, and the edge losses when learning."""
        drawn = {kind: nodes.draw(step) if learn else NO_KEYS for kind, nodes in self.nodes.items()}
        shared = {kind: NO_KEYS if nodes.own else drawn[kind] for kind, nodes in self.nodes.items()}
        encoded: Encoded = self.inputs(batch, learn, shared["item"], shared.get("query", NO_KEYS))
        vectors = {"item": self._vectors(batch, "item", encoded.items, drawn["item"], learn)}
        if self.has_queries:
            assert encoded.queries is not None
            vectors["query"] = self._vectors(batch, "query", encoded.queries, drawn["query"], learn)
        graph = functools.cache(partial(self._graph, batch, vectors, step)) if learn and self.config.graph else None
        out = self._score(batch, encoded, vectors, learn and self.place is None, graph)
        if self.place is not None:
            out = Forward(out.logits + self.place(batch, learn))
        if graph is None:
            return out
        losses, stats = graph()  # where the MLP learned beside it, this was done meanwhile
        return out._replace(losses=losses, stats=stats)

    def _vectors(self, batch: Batch, kind: str, shared: Gathered, drawn: Keys, learn: bool) -> Gathered:
        """Return the graph vectors of one node type; uses: of now (candidates or query), of the history, ..., drawn."""
        nodes = self.nodes[kind]
        if nodes.own is None:
            return shared
        asked = batch.distinct(*self._columns(kind)).with_more(drawn)
        return nodes.own.look_up(asked, learn=learn, ts=batch.newest_ts)

    def _columns(self, kind: str) -> tuple[str, str]:
        """Return the columns of a node type's ids: of now and of the history."""
        return (CANDIDATES, f"{self.sequence}.item") if kind == "item" else ("query", f"{QUERY}.id")

    def _score(
        self, batch: Batch, encoded: Encoded, vectors: Mapping[str, Gathered], learn: bool, meanwhile: Task | None
    ) -> Forward:
        items, encoder = vectors["item"], self._similar("i2i")
        clicks, candidates = batch.ragged(f"{self.sequence}.item").offsets, batch.ragged(CANDIDATES).offsets
        slots = encoder.found(items, NOW, items, PAST, clicks, candidates)
        of_candidate, of_request = self._graph_inputs(batch, items)
        candidate = [*encoded.candidate, *encoded.products, SlotPart(encoder, slots), *of_candidate]
        request = [encoded.request, *of_request]
        if self.has_queries:
            queries, one_each = vectors["query"], np.arange(batch.n_requests + 1)
            for kind, past, offsets in (("q2q", queries, batch.ragged(f"{QUERY}.id").offsets), ("q2i", items, clicks)):
                encoder = self._similar(kind)
                request.append(encoder.embed(encoder.found(queries, NOW, past, PAST, offsets, one_each)))
        return clicked(self.mlp, candidate, beside(request), batch, learn, meanwhile)

    def _similar(self, kind: str) -> SimExtract:
        return cast(SimExtract, self.similar[kind])

    def _graph_inputs(self, batch: Batch, items: Gathered) -> tuple[list[Part], list[Tensor]]:
        """Return what belongs to a candidate, the target and its products with mean and newest of the history, and what belongs
        to a request, ``[R, 2 D]``: that mean and newest."""
        if self.config.graph_inputs == "off":
            return [], []
        if self.config.graph_inputs == "frozen":
            items = items._replace(weight=items.weight.detach())
        history = crossed(batch, items, PAST, f"{self.sequence}.item", newest=True)
        return [distinct(items), Part(history.candidate)], [history.request]

    def _graph(
        self, batch: Batch, vectors: Mapping[str, Gathered], step: int
    ) -> tuple[dict[str, Tensor | float], dict[str, float]]:
        """Return the edge losses, and figures."""
        name, seed, config = self.context.name, self.context.seed, self.config
        keep = self._subsampled(batch, step)
        graph = subgraph(batch, self.sequence, config.edges, seed, name, step, queries=self.has_queries, keep=keep)
        items = self.nodes["item"].nodes(vectors["item"], graph.item_source, batch.newest_ts)
        losses = {"i2i": items.loss(graph.i2i, items, config.alpha)}
        if self.has_queries:
            queries = self.nodes["query"].nodes(vectors["query"], graph.query_source, batch.newest_ts)
            losses["q2q"] = queries.loss(graph.q2q, queries, config.beta)
            there, back = queries.loss(graph.q2i, items, config.gamma / 2), items.loss(graph.i2q, queries, config.gamma / 2)
            losses["q2i"] = (there + back) / 2
        n = max(batch.n_requests, 1)
        edges = {"i2i": graph.i2i.n_edges, "q2q": graph.q2q.n_edges, "q2i": graph.q2i.n_edges + graph.i2q.n_edges}
        stats = {f"edges.{kind}": edges[kind] / n for kind in losses}
        for kind, nodes in self.nodes.items():
            stats |= {f"queue.{kind}.fill": float(nodes.queue.fill), f"queue.{kind}.age": nodes.queue.mean_age()}
        return losses, stats

    def _subsampled(self, batch: Batch, step: int) -> Bools | None:
        queue = self.nodes["item"].queue
        if not self.config.subsample or not queue.fill:
            return None
        frequency = queue.counts(batch.ids(f"{self.sequence}.item")) / queue.fill
        return subsample(frequency, self.config.subsample, draw_key(self.context.seed, self.context.name, "subsample", step))

    def after(self, batch: Batch, step: int) -> None:
        """Let the fresh clicks and queries into the queues, after the loss that met the old ones."""
        super().after(batch, step)
        if self.config.graph:
            for kind, nodes in self.nodes.items():
                nodes.queue.push(self._fresh(batch, kind))

    def memory(self) -> State:
        """Return counts and queues."""
        states = {kind: nodes.queue.state() for kind, nodes in self.nodes.items() if self.config.graph}
        queues = {f"queue.{kind}.{part}": array for kind, state in states.items() for part, array in state.items()}
        return {**super().memory(), **queues}

    def load_memory(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Take counts and queues back."""
        super().load_memory(state)
        for kind, nodes in self.nodes.items() if self.config.graph else ():
            prefix = f"queue.{kind}."
            nodes.queue.load_state({n.removeprefix(prefix): a for n, a in state.items() if n.startswith(prefix)})

    def describe(self) -> dict[str, Any]:
        """Return queue fill, and which parts are off and why."""
        queues = {kind: {"fill": n.queue.fill, "capacity": n.queue.capacity} for kind, n in self.nodes.items()}
        return {"queues": queues if self.config.graph else {}, "off": self.off()}

    def off(self) -> dict[str, str]:
        """Return the parts that are off, each with the reason."""
        log = "the log has no queries" if not self.inputs.has_query else "queries = false"
        off = {} if self.has_queries else dict.fromkeys(("q2q", "q2i", "seeds"), log)
        if self.has_queries and not self.inputs.has_category:
            off["seeds"] = "the log has no categories; q2q and q2i edges go by time alone"
        return off if self.config.graph else {**off, "graph": "graph = false"}


def build(config: Config, context: ModelContext) -> Learner:
    """Build the learner."""
    torch.manual_seed(context.seed)
    return NeuralLearner(EGIN(config, context), config.rate, context.device)
