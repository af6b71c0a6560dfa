"""Subgraph: the nodes and edges that one batch of requests contributes to the implicit query-item graph (EGIN section 3.2).

Legend: ``R`` requests, ``N`` item nodes and ``Q`` query nodes (one per entry of the lengthened sequences), ``E`` edges of one
kind.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from learners.batch import CANDIDATES, Batch
from learners.graph.append import lengthened, where
from learners.graph.edges import Edges, Mode, Positions, TimedNodes
from learners.graph.i2i import i2i_edges
from learners.graph.q2i import ItemRule, q2i_edges
from learners.graph.q2q import QueryRule, q2q_edges
from learners.graph.seeds import seed_mix
from learners.samples import QUERY, QUERY_CATEGORIES, Ragged
from negative_queues.draws import DrawKey, draw_key
from negative_queues.kernels import kernel

Bools = npt.NDArray[np.bool_]
Labels = npt.NDArray[np.float32]
Keyed = Callable[[str], DrawKey]
"""The key of a purpose's draw."""


class GraphConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which edges a batch contributes."""

    window: int = 2
    """i2i: clicks at most so far apart are joined (w in Algorithm 1)."""
    timespan_ms: int = 1_800_000
    """q2q and q2i: T in Algorithm 2."""
    edges: Mode = "fresh"
    """fresh: each edge of the stream once, when it is new; all: all edges of the histories each time, as in the paper."""
    own: bool = True
    """Whether the clicks and the query being learned are nodes already now, rather than in the user's next request."""
    q2q_rule: QueryRule = "algorithm2"
    """algorithm2: queries near in time that share a category; session: all pairs of a session, as in the text."""
    q2i_rule: ItemRule = "algorithm2"
    """algorithm2: items clicked after the query; around: before or after, as in the text."""
    share_seed: float = 0.2
    """i2i: share of requests whose clicks are cut to the category of the current query (section 4.6.2)."""
    cap: int | None = None
    """Edges of a kind per request, at most, drawn without bias; None takes all."""


class Subgraph(NamedTuple):
    """Edges are positions into the nodes; ``*_places`` say where a node stands in (history, own) of its sequence's gather."""

    items: TimedNodes
    item_source: Positions
    """Position of each item node in (entries of the history, candidates), ``[N]``."""
    queries: TimedNodes | None
    query_source: Positions
    """Position of each query node in (entries of the history, requests), ``[Q]``."""
    i2i: Edges
    q2q: Edges
    q2i: Edges
    """From a query to an item."""
    i2q: Edges
    """From an item to a query."""


NO_POSITIONS: Positions = np.zeros(0, np.int64)
NO_EDGES = Edges(NO_POSITIONS, NO_POSITIONS)


def subgraph(
    batch: Batch,
    sequence: str,
    config: GraphConfig,
    seed: int,
    name: str,
    step: int,
    *,
    queries: bool,
    keep: Bools | None = None,
) -> Subgraph:
    """Build a batch's nodes and edges.

    Args:
        batch: requests being learned; their labels are used where ``config.own``.
        sequence: the item sequence that is the click sequence.
        config: kinds and bounds.
        seed: with ``name`` and ``step`` the key of all draws.
        name: of the model.
        step: of the learner.
        queries: whether queries are nodes.
        keep: item entries of the history that may have edges, bool ``[H]``; None keeps all (subsampling).
    """

    def key(purpose: str) -> DrawKey:
        return draw_key(seed, name, purpose, step)

    items, item_source = item_nodes(batch, sequence, config.own, queries)
    if keep is not None:
        kept = np.concatenate([keep, np.ones(batch.n_candidates, bool)])[item_source]
        items = items._replace(keep=kept)
    seeds = _seeds(batch, items, config.share_seed, key) if queries else None
    i2i = _i2i(batch, sequence, config, items, seeds, key)
    if not queries:
        return Subgraph(items, item_source, None, NO_POSITIONS, i2i, NO_EDGES, NO_EDGES, NO_EDGES)
    nodes, query_source = query_nodes(batch, config.own)
    q2q = _q2q(batch, config, key)
    q2i, i2q = _q2i(batch, sequence, config, items, key)
    return Subgraph(items, item_source, nodes, query_source, i2i, q2q, q2i, i2q)


def prepare_subgraph(batch: Batch, sequence: str, config: GraphConfig, *, queries: bool) -> None:
    """Make those parts of a batch's subgraph ahead that depend on no draw; they stay with its block.

    Args:
        batch: of which no step need be known.
        sequence, config, queries: as of :func:`subgraph`.
    """
    items, _ = item_nodes(batch, sequence, config.own, queries)
    if queries:
        query_nodes(batch, config.own)
    if config.cap is not None:
        return
    if not queries or not _has_seeds(batch, config.share_seed):
        _i2i(batch, sequence, config, items, None, None)
    if queries:
        _q2q(batch, config, None)
        _q2i(batch, sequence, config, items, None)


def _i2i(batch: Batch, sequence: str, config: GraphConfig, items: TimedNodes, seeds: Bools | None, key: Keyed | None) -> Edges:
    def make() -> Edges:
        kept = seeds if items.keep is None else items.keep if seeds is None else seeds & items.keep
        return i2i_edges(items.ids, config.window, items.fresh, config.edges, config.cap, _cap_key(config, key, "i2i"), kept)

    drawn = config.cap is not None or seeds is not None or items.keep is not None
    of = "i2i", sequence, config.own, config.window, config.edges
    return make() if drawn else batch.block.once(of, make)


def _q2q(batch: Batch, config: GraphConfig, key: Keyed | None) -> Edges:
    def make() -> Edges:
        nodes, _ = query_nodes(batch, config.own)
        return q2q_edges(nodes, config.timespan_ms, config.q2q_rule, config.edges, config.cap, _cap_key(config, key, "q2q"))

    of = "q2q", config.own, config.timespan_ms, config.q2q_rule, config.edges
    return make() if config.cap is not None else batch.block.once(of, make)


def _q2i(batch: Batch, sequence: str, config: GraphConfig, items: TimedNodes, key: Keyed | None) -> tuple[Edges, Edges]:
    def make() -> tuple[Edges, Edges]:
        nodes, _ = query_nodes(batch, config.own)
        return q2i_edges(
            nodes, items, config.timespan_ms, config.q2i_rule, config.edges, config.cap, _cap_key(config, key, "q2i")
        )

    of = "q2i", sequence, config.own, config.timespan_ms, config.q2i_rule, config.edges
    return make() if config.cap is not None or items.keep is not None else batch.block.once(of, make)


def _cap_key(config: GraphConfig, key: Keyed | None, kind: str) -> DrawKey | None:
    return None if config.cap is None or key is None else key(f"cap.{kind}")


def item_nodes(batch: Batch, sequence: str, own: bool, timed: bool) -> tuple[TimedNodes, Positions]:
    """Return the item nodes of a batch, and where each stands in (history, candidates); untimed they have neither times nor
    categories, which only edges with queries ask for."""
    return batch.block.once(("item nodes", sequence, own, timed), lambda: _item_nodes(batch, sequence, own, timed))


def query_nodes(batch: Batch, own: bool) -> tuple[TimedNodes, Positions]:
    """Return the query nodes of a batch, and where each stands in (history, requests)."""
    return batch.block.once(("query nodes", own), lambda: _query_nodes(batch, own))


def _item_nodes(batch: Batch, sequence: str, own: bool, timed: bool) -> tuple[TimedNodes, Positions]:
    history, candidates = batch.ragged(f"{sequence}.item"), batch.ragged(CANDIDATES)
    labels, n_requests = batch.values("candidate.label"), batch.n_requests
    most = len(history.values) + len(labels) * own
    nodes, offsets, fresh = np.empty((2, most), np.int64), np.empty(n_requests + 1, np.int64), np.empty(n_requests, np.int64)
    n = _clicked_behind(*history, batch.values(f"{sequence}.fresh"), *candidates, labels, own, offsets, fresh, nodes)
    ids, source = nodes[:, :n]
    if not timed:
        return TimedNodes(Ragged(ids, offsets), NO_POSITIONS, None, fresh), source
    ts, category = np.empty((2, n), np.int64)
    _timed(
        batch.ids(f"{sequence}.ts"), batch.ids(f"{sequence}.category"), batch.ids("candidate.category"), batch.ids("ts"),
        source, offsets, ts, category,
    )  # fmt: skip
    return TimedNodes(Ragged(ids, offsets), ts, category, fresh), source


@kernel
def _clicked_behind(
    history_ids: Positions,
    history: Positions,
    history_fresh: npt.NDArray[np.int32],
    candidate_ids: Positions,
    candidates: Positions,
    labels: Labels,
    own: bool,
    offsets: Positions,
    fresh: Positions,
    nodes: Positions,
) -> int:
    """Put the clicked candidates of each request behind its history, where they are ``own``.

    Write ids and places in (history, candidates) to ``nodes [2, ..]``, ``offsets [R + 1]``, and how many of each request are
    new, ``fresh [R]``; return how many nodes there are.
    """
    at = 0
    for row in range(len(fresh)):
        offsets[row] = at
        for h in range(history[row], history[row + 1]):
            nodes[0, at], nodes[1, at] = history_ids[h], h
            at += 1
        fresh[row] = history_fresh[row]
        if own:
            for c in range(candidates[row], candidates[row + 1]):
                if labels[c] > 0:
                    nodes[0, at], nodes[1, at] = candidate_ids[c], len(history_ids) + c
                    at += 1
                    fresh[row] += 1
    offsets[len(fresh)] = at
    return at


@kernel
def _timed(
    history_ts: Positions,
    history_category: Positions,
    candidate_category: Positions,
    request_ts: Positions,
    source: Positions,
    offsets: Positions,
    ts: Positions,
    category: Positions,
) -> None:
    """Write times and categories of the nodes, ``[N]``.

    A click came after the request; when exactly is not in the sample, so it counts as 1 ms later.
    """
    for row in range(len(offsets) - 1):
        for node in range(offsets[row], offsets[row + 1]):
            at = source[node]
            if at < len(history_ts):
                ts[node], category[node] = history_ts[at], history_category[at]
            else:
                ts[node], category[node] = request_ts[row] + 1, candidate_category[at - len(history_ts)]


def _query_nodes(batch: Batch, own: bool) -> tuple[TimedNodes, Positions]:
    history = batch.ragged(f"{QUERY}.id")
    now = batch.block.column("query")
    asked = where((now != 0) if own else np.zeros(len(now), bool), np.arange(len(now) + 1))
    longer = lengthened(history.offsets, asked.offsets)
    ids = Ragged(longer.of(history.values, now[asked.values]), longer.offsets)
    ts = longer.of(batch.ids(f"{QUERY}.ts"), batch.block.column("ts")[asked.values])
    past = batch.ids(f"{QUERY}.category").reshape(-1, QUERY_CATEGORIES)
    category = longer.of(past, batch.block.column("query_category")[asked.values])
    fresh = batch.block.column(f"{QUERY}.fresh") + asked.lengths
    source = longer.of(np.arange(len(history.values)), len(history.values) + asked.values)
    return TimedNodes(ids, ts, category, fresh), source


def _seeds(batch: Batch, items: TimedNodes, share: float, key: Keyed) -> Bools | None:
    if items.categories is None or not _has_seeds(batch, share):
        return None
    return seed_mix(Ragged(items.categories, items.ids.offsets), batch.block.column("query_category"), share, key("seeds"))


def _has_seeds(batch: Batch, share: float) -> bool:
    return share != 0 and bool(batch.block.column("query_category").any())
