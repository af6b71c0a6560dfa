"""Inputs: everything of a sample but the graph, as vectors (``f_o``, the other features, in EGIN's equation for pctr).

Legend: ``R`` requests, ``C`` candidates, ``H`` entries of one sequence, ``D`` dim, ``T`` width of a target: D for the item, D
more for its category.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from learners import gather, products16
from learners.batch import CANDIDATES, Batch
from learners.beside import beside
from learners.crossed import crossed
from learners.device import place
from learners.float_columns import as_matrix, fill_ages, length_and_recency, request_times
from learners.layers import Standardise, pool
from learners.learner import State
from learners.models import ModelContext
from learners.rates import Rates
from learners.request_mlp import Part, SlotPart, distinct
from learners.samples import QUERY, QUERY_CATEGORIES
from learners.tables import EmbeddingTable, Gathered, TableConfig
from learners.tables.index import Keys
from learners.tables.together import Asked, Together, asked_together
from learners.vector_inputs import VectorInputs

PRIOR = 20.0  # impressions that the stream's own click rate counts for
NO_KEYS: Keys = np.zeros(0, np.int64)
MAY_HAVE_MORE = ("item", "query")
"""Tables whose last use is what a network looks up beside the batch's own ids, none by default."""
Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]


class NetworkConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Options that all neural models share."""

    dim: int = 16
    """Width of item, category and query vectors."""
    feature_dim: int = 8
    """Width of id features and positions."""
    hidden: tuple[int, ...] = (200, 80)
    """Widths of the hidden layers of the network on top."""
    products: Literal["float32", "bfloat16"] = "float32"
    """In what that network multiplies. bfloat16, of 8 bits of precision, is faster; without a GPU it needs a processor that has
    it (AVX512_BF16). Weights, sums and all else stay float32; on a GPU what comes out of a layer is rounded too."""
    rate: float = 1e-3
    """Adam's learning rate, for layers."""
    table_rate: float = 0.1
    """Row-wise Adagrad's learning rate, for tables."""
    table_keep: float = 0.998
    """Share of a row's accumulator that stays at each update; 1 is plain Adagrad."""
    initial_scale: float = 0.01
    """New vectors are uniform in [-scale, scale)."""
    max_rows: int = 10_000_000
    """Rows of each table, at most; then those not seen for longest give way."""
    admit_after: int = 1
    """An id gets a row in a table once it was seen so often; until then it is scored as a new one, and learns nothing."""
    admit_probability: float = 1.0
    """A new id gets a row with this probability, drawn anew in every batch that it is in; the other way to admit."""
    expire_after_ms: int | None = None
    """Rows not seen for so long in event time are removed."""
    vectors: Literal["auto", "off"] = "auto"
    """auto: networks that read items one by one (bst, cross_bst, dien, din, semi, youtube_dnn) take their pre-extracted vectors
    where the run has them (``[vectors]``), and learned ids for items without one. off: learned ids alone."""
    sequences: tuple[str, ...] = ()
    """Item sequences to use; all of the samples' by default."""
    position: bool = True
    """Whether the logged position of a candidate is an input."""
    n_positions: int = 64
    """Positions told apart; later ones are one."""
    statistics: bool = True
    """Whether what the learned stream says of an item is an input: age, count, impressions and click rate lately."""
    half_life_ms: float = 1_800_000.0
    """Of those last two, in event time."""

    def table(self, dim: int, **others: Any) -> TableConfig:
        """Return the options of a table of vectors of ``dim``; ``others`` stand in for the network's."""
        own = {
            "rate": self.table_rate,
            "keep": self.table_keep,
            "initial_scale": self.initial_scale,
            "max_rows": self.max_rows,
            "admit_after": self.admit_after,
            "admit_probability": self.admit_probability,
            "expire_after_ms": self.expire_after_ms,
        }
        return TableConfig(dim=dim, **{**own, **others})


class Encoded(NamedTuple):
    """A batch as vectors."""

    candidate: list[Part | SlotPart]
    """What belongs to a candidate, together ``[C, Dc]``."""
    request: Tensor
    """What belongs to a request, ``[R, Dr]``."""
    products: list[Part | SlotPart]
    """Products of the target and the mean of each item sequence, together ``[C, T]`` per sequence."""
    items: Gathered
    """Uses: candidates, each item sequence, more."""
    categories: Gathered | None
    """Uses: candidates, each item sequence, and with queries those of the request and of the query sequence."""
    queries: Gathered | None
    """Uses: the request's query, the query sequence, more."""
    item_ids: list[Keys]
    """Of the candidates, of each item sequence."""


class Inputs(nn.Module):
    """Tables and encoders of all features that the samples carry.

    Args:
        config: widths, rates, what to use.
        context: schema, seed, device; features in ``context.ignored_features`` stay out.
        by_vector: whether the network reads items one by one, by :meth:`target` and :meth:`history`, so that vectors reach it.
    """

    def __init__(self, config: NetworkConfig, context: ModelContext, *, by_vector: bool = False) -> None:
        super().__init__()
        schema, hidden = context.schema, set(context.ignored_features)
        self.config = config
        if config.products == "bfloat16" and context.device == "cpu":
            products16.check(f"{context.name}: ")
        self.sequences = config.sequences or schema.item_sequences
        if unknown := set(self.sequences) - set(schema.item_sequences):
            have = ", ".join(schema.item_sequences) or "none"
            raise ValueError(f"{context.name}: no item sequence {sorted(unknown)[0]!r} in these samples; they have: {have}")
        self.has_query, self.has_category = schema.has_query, schema.has_category
        self.request_ids = [f"request_feature.{n}" for n in schema.request_ids if n not in hidden]
        self.candidate_ids = [f"candidate_feature.{n}" for n in schema.candidate_ids if n not in hidden]
        self.request_floats = [f"request_feature.{n}" for n in schema.request_floats if n not in hidden]
        self.candidate_floats = [f"candidate_feature.{n}" for n in schema.candidate_floats if n not in hidden]
        names = ["item"] + ["category"] * self.has_category + ["query"] * self.has_query
        self.tables = {name: self._table(name, config.dim, context) for name in names}
        for name in self.request_ids + self.candidate_ids:
            self.tables[name] = self._table(name, config.feature_dim, context)
        self.together = Together([self.tables[name] for name in self.request_ids]) if self.request_ids else None
        self._alone = [table for name, table in self.tables.items() if name not in self.request_ids]
        self.position = nn.Embedding(config.n_positions + 1, config.feature_dim) if config.position else None
        if self.position is not None:
            nn.init.uniform_(self.position.weight, -config.initial_scale, config.initial_scale)
        self.rates = Rates(context.name, PRIOR, config.max_rows, config.half_life_ms) if config.statistics else None
        self.n_request_floats = len(self.request_floats) + 2 * len(self.sequences)
        self.n_candidate_floats = len(self.candidate_floats) + 4 * config.statistics
        self.standardise_request = Standardise(self.n_request_floats)
        self.standardise_candidate = Standardise(self.n_candidate_floats)
        self._asked = self._columns_of_tables()
        self._seen: tuple[Tensor, Tensor | None] | None = None
        self.vectors: VectorInputs | None = None
        if by_vector and config.vectors == "auto" and context.vectors is not None:
            self.vectors = VectorInputs(context.vectors, self.target_dim)

    def _table(self, name: str, dim: int, context: ModelContext) -> EmbeddingTable:
        return EmbeddingTable(f"{context.name}/{name}", self.config.table(dim), context.seed, context.device)

    def _columns_of_tables(self) -> dict[str, tuple[str, ...]]:
        """Return the columns whose ids each table looks up, a use each."""
        asked = {
            "item": (CANDIDATES, *(f"{name}.item" for name in self.sequences)),
            "category": ("candidate.category", *(f"{name}.category" for name in self.sequences)),
            "query": ("query", f"{QUERY}.id"),
        }
        if self.has_query:
            asked["category"] += ("query_category", f"{QUERY}.category")
        return {name: asked.get(name, (name,)) for name in self.tables}

    @property
    def target_dim(self) -> int:
        """Width of a target (``T``)."""
        return self.config.dim * (1 + self.has_category)

    @property
    def candidate_dim(self) -> int:
        """Width of :attr:`Encoded.candidate`."""
        ids = self.config.feature_dim * (len(self.candidate_ids) + self.config.position)
        return self.target_dim + ids + 2 * self.n_candidate_floats

    @property
    def request_dim(self) -> int:
        """Width of :attr:`Encoded.request`."""
        query = self.config.dim * self.has_query * (2 + self.has_category)
        ids = self.config.feature_dim * len(self.request_ids)
        return len(self.sequences) * self.target_dim + query + ids + 2 * self.n_request_floats

    def prepare(self, batch: Batch) -> None:
        """Make what :meth:`forward` and :meth:`observe` need of the batch alone: a thread may do it ahead of them."""
        for table, names in self._asked.items():
            if table not in self.request_ids:
                batch.distinct(*names)
        if self.request_ids:
            self._request_asked(batch)
        for name in self.sequences:
            batch.offsets(f"{name}.item")
        if self.has_query:
            batch.offsets(f"{QUERY}.id")
        self._request_floats(batch)
        self._given(batch)
        if self.position is not None:
            self._positions(batch)
        if self.rates is not None:
            request_times(batch)
            self.rates.amounts(batch.block)

    def forward(self, batch: Batch, learn: bool, more_items: Keys = NO_KEYS, more_queries: Keys = NO_KEYS) -> Encoded:
        """Encode a batch; when learning, tables admit new ids and wait for gradients.

        ``more_items`` and ``more_queries`` are looked up with the batch's own and are the last use of their table: negatives.
        """
        request_floats = self._request_floats(batch)
        candidate_floats = self._candidate_floats(batch) if self.n_candidate_floats else None
        items = self._look_up(batch, "item", learn, more_items)
        categories = self._look_up(batch, "category", learn) if self.has_category else None
        queries = self._look_up(batch, "query", learn, more_queries) if self.has_query else None
        looked_up = [items] + ([categories] if categories else [])
        histories_of = [crossed(batch, t, use, f"{n}.item") for use, n in enumerate(self.sequences, 1) for t in looked_up]
        self._seen = (request_floats, candidate_floats) if learn else None
        candidate: list[Part | SlotPart] = [distinct(table) for table in looked_up]
        candidate += [distinct(self._look_up(batch, name, learn)) for name in self.candidate_ids]
        if self.position is not None:
            candidate.append(Part(self.position.weight, self._positions(batch)))
        if candidate_floats is not None:
            candidate.append(Part(self.standardise_candidate(candidate_floats)))
        request = [*(history.request for history in histories_of), *self._query_parts(batch, queries, categories)]
        if self.together is not None:
            request.append(self._request_vectors(batch, learn))
        request.append(self.standardise_request(request_floats))
        products: list[Part | SlotPart] = [Part(history.candidate) for history in histories_of]
        item_ids = [batch.ids(name) for name in self._asked["item"]]
        return Encoded(candidate, beside(request), products, items, categories, queries, item_ids)

    def observe(self, batch: Batch) -> None:
        """Take in what only counts from the next batch on: moments of the floats just learned, impressions and clicks."""
        if self._seen is not None:
            self.standardise_request.observe(self._seen[0])
            if self._seen[1] is not None:
                self.standardise_candidate.observe(self._seen[1])
            self._seen = None
        if self.rates is not None:
            asked = batch.distinct(*self._asked["item"]).first()
            self.rates.count(asked, self.rates.amounts(batch.block), batch.newest_ts)

    def memory(self) -> State:
        """Return what is neither parameter, buffer nor table: impressions and clicks."""
        return {} if self.rates is None else {f"rates.{name}": array for name, array in self.rates.state().items()}

    def load_memory(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Take :meth:`memory` back."""
        if self.rates is not None:
            self.rates.load_state({n.removeprefix("rates."): a for n, a in state.items() if n.startswith("rates.")})

    def history(self, encoded: Encoded, sequence: str) -> Tensor:
        """Return the entries of an item sequence as targets, ``[H, T]``."""
        return self._items(encoded, 1 + self.sequences.index(sequence))

    def given_history(self, encoded: Encoded, sequence: str) -> Tensor:
        """Return the same before the projection of item vectors (:meth:`learners.vector_inputs.VectorInputs.given`)."""
        assert self.vectors is not None, "asked for where items have vectors"
        use = 1 + self.sequences.index(sequence)
        return self.vectors.given(encoded.item_ids[use], self._learned(encoded, use))

    def target(self, encoded: Encoded) -> Tensor:
        """Return the candidates, ``[C, T]``: item and category, or the item's own vector."""
        return self._items(encoded, 0)

    def _items(self, encoded: Encoded, use: int) -> Tensor:
        learned = self._learned(encoded, use)
        if self.vectors is None:
            return learned
        projected: Tensor = self.vectors(encoded.item_ids[use], learned)
        return projected

    def _learned(self, encoded: Encoded, use: int) -> Tensor:
        parts = [encoded.items.of(use)] + ([encoded.categories.of(use)] if encoded.categories else [])
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def _look_up(self, batch: Batch, table: str, learn: bool, more: Keys = NO_KEYS) -> Gathered:
        """Look a table's columns up, and ``more`` as one more use where it has any (or may have, of items and queries)."""
        asked = batch.distinct(*self._asked[table])
        if table in MAY_HAVE_MORE:
            asked = asked.with_more(more)
        return self.tables[table].look_up(asked, learn=learn, ts=batch.newest_ts)

    def _request_vectors(self, batch: Batch, learn: bool) -> Tensor:
        """Return the vectors of the requests' id features side by side, ``[R, features * dim]``."""
        assert self.together is not None
        asked = self._request_asked(batch)
        weight = self.together.look_up(asked, learn=learn, ts=batch.newest_ts)
        places = place(asked.places, batch.device)
        return gather.rows(weight, places, len(self.request_ids))

    def apply_gradients(self) -> None:
        """Take one step of the optimiser on each table."""
        if self.together is not None:
            self.together.apply_gradients()
        for table in self._alone:
            table.apply_gradients()

    def _request_asked(self, batch: Batch) -> Asked:
        names = self.request_ids
        return batch.block.once(("asked together", *names), lambda: asked_together([batch.ids(name) for name in names]))

    def _query_parts(self, batch: Batch, queries: Gathered | None, categories: Gathered | None) -> list[Tensor]:
        if queries is None:
            return []
        parts = [queries.of(0), pool(queries, 1, batch.offsets(f"{QUERY}.id"))]
        if categories is not None:
            parts.append(pool(categories, 1 + len(self.sequences), _of_query(batch), "sum"))  # missing categories are 0
        return parts

    def _request_floats(self, batch: Batch) -> Tensor:
        def make() -> Floats:
            columns: list[npt.NDArray[Any]] = [batch.values(name) for name in self.request_floats]
            for name in self.sequences:
                columns += length_and_recency(batch, name)
            return as_matrix(columns, batch.n_requests)

        key = ("request floats", *self.request_floats, None, *self.sequences)
        return place(batch.block.once(key, make), batch.device)

    def _given(self, batch: Batch) -> Floats:
        """Return the candidates' float features as they are given, ``[C, n]``."""
        key = ("candidate floats", *self.candidate_floats)
        return batch.block.once(
            key, lambda: as_matrix([batch.values(name) for name in self.candidate_floats], batch.n_candidates)
        )

    def _candidate_floats(self, batch: Batch) -> Tensor:
        floats = self._given(batch)
        if self.config.statistics:
            given, floats = floats, np.empty((batch.n_candidates, self.n_candidate_floats), np.float32)
            floats[:, : given.shape[1]] = given
            floats[:, given.shape[1] :] = self._statistics(batch).T
        return place(floats, batch.device)

    def _positions(self, batch: Batch) -> Tensor:
        last = self.config.n_positions - 1
        found = batch.block.once(
            ("positions", last), lambda: batch.ids("candidate.position").clip(-1, last).astype(np.int64) + 1
        )
        return place(found, batch.device)

    def _statistics(self, batch: Batch) -> Doubles:
        """Return logs of (1 + batches learned with the item), (1 + its age in hours), (1 + impressions lately) and of its click
        rate lately, all as of before this batch, ``[4, C]``."""
        assert self.rates is not None
        asked, now = batch.distinct(*self._asked["item"]).first(), request_times(batch)
        places, (count, first_ts) = asked.places[0].numpy(), self.tables["item"].statistics(asked.keys)
        found = np.empty((4, len(now)))
        fill_ages(places, count, first_ts, now, found[0], found[1])
        found[2], found[3] = self.rates.lately(asked, now)
        np.log1p(found[:3], out=found[:3])
        np.log(found[3], out=found[3])
        return found


def _of_query(batch: Batch) -> Tensor:
    """Return where the categories of each request's query begin and end, ``[R + 1]``."""

    def make() -> Tensor:
        return torch.arange(0, batch.n_requests * QUERY_CATEGORIES + 1, QUERY_CATEGORIES, device=batch.device)

    return batch.block.once(("categories of queries", batch.device), make)
