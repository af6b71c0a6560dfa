"""What EGIN and DIN look at, for :mod:`learners.explain`.

Letters: ``C`` candidates of the request, ``H`` entries of a sequence.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from learners.attention import matrices
from learners.batch import CANDIDATES, Batch
from learners.explain import Link, Look
from learners.graph.edges import Edges, Positions
from learners.graph.subgraph import subgraph
from learners.learner import Learner
from learners.models.din import DIN
from learners.models.egin import EGIN
from learners.network import NeuralLearner
from learners.samples import QUERY, SampleBlock
from learners.sim_extract import sim_extract
from learners.tables import EmbeddingTable

__all__ = ["looks_and_links"]


def looks_and_links(learner: Learner, block: SampleBlock) -> tuple[list[Look], list[Link]]:
    """Return what a network looks at in a block of one request; nothing for learners that are neither EGIN nor DIN."""
    if not isinstance(learner, NeuralLearner):
        return [], []
    batch = Batch(block, learner.device)
    with torch.no_grad():
        if isinstance(learner.network, EGIN):
            return _similarities(learner.network, batch), _edges(learner, learner.network, batch)
        if isinstance(learner.network, DIN):
            return _attention(learner.network, batch), []
    return [], []


def _similarities(network: EGIN, batch: Batch) -> list[Look]:
    clicks = f"{network.sequence}.item"
    looks = [_look("i2i", network, batch, ("item", CANDIDATES), ("item", clicks), network.sequence)]
    if network.has_queries and batch.ids("query").any():
        looks.append(_look("q2q", network, batch, ("query", "query"), ("query", f"{QUERY}.id"), QUERY))
        looks.append(_look("q2i", network, batch, ("query", "query"), ("item", clicks), network.sequence))
    return looks


def _look(name: str, network: EGIN, batch: Batch, targets: tuple[str, str], entries: tuple[str, str], sequence: str) -> Look:
    target = _vectors(network, targets[0], batch, targets[1])
    past = _vectors(network, entries[0], batch, entries[1])
    cosines = _unit(target) @ _unit(past).T
    lengths = torch.tensor([0, len(past)]), torch.tensor([0, len(target)])
    slots = sim_extract(target.cpu(), past.cpu(), *lengths, k=network.config.top_k, max_len=len(past) + 1)
    picked = [[len(past) - place for place in row if place] for row in slots.positions.tolist()]
    return Look(name, sequence, cosines.cpu().numpy(), picked)


def _vectors(network: EGIN, kind: str, batch: Batch, column: str) -> torch.Tensor:
    table: EmbeddingTable = network.nodes[kind].own or network.inputs.tables[kind]
    return table.gather(batch.ids(column)).of(0).detach()


def _unit(vectors: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(vectors.float(), dim=1, eps=1e-12)


def _edges(learner: NeuralLearner, network: EGIN, batch: Batch) -> list[Link]:
    config, context = network.config, network.context
    if not config.graph:
        return []
    graph = subgraph(
        batch, network.sequence, config.edges, context.seed, context.name, learner.step, queries=network.has_queries
    )
    items = _ends("item", graph.item_source, len(batch.ids(f"{network.sequence}.item")), "candidate")
    queries = []
    if graph.queries is not None:
        queries = _ends("query", graph.query_source, len(batch.ids(f"{QUERY}.id")), "now")
    return [
        *_links("i2i", graph.i2i, items, items),
        *_links("q2q", graph.q2q, queries, queries),
        *_links("q2i", graph.q2i, queries, items),
    ]


def _ends(kind: str, source: Positions, n_history: int, now: str) -> list[tuple[str, str, int]]:
    """Say where each node comes from."""
    places = source.tolist()
    return [(kind, "history", at) if at < n_history else (kind, now, at - n_history) for at in places]


def _links(kind: str, edges: Edges, first: list[Any], second: list[Any]) -> list[Link]:
    """Return each edge once: those of one type stand in both directions."""
    pairs = zip(edges.anchor.tolist(), edges.positive.tolist(), strict=True)
    return [Link(kind, first[a], second[b]) for a, b in pairs if first is not second or a < b]


def _attention(network: DIN, batch: Batch) -> list[Look]:
    target = _targets(network, batch, CANDIDATES, "candidate.category")
    looks = []
    for name, unit in network.attention.items():
        history = _targets(network, batch, f"{name}.item", f"{name}.category")
        # Each pair as a request of its own: what comes back is weight x entry, so the weight is its projection on the entry.
        targets, entries = target.repeat_interleave(len(history), 0), history.repeat(len(target), 1)
        alone = np.arange(len(entries) + 1)
        weighed = unit(matrices(targets, entries), alone, alone)[:, : targets.shape[1]]
        weights = (weighed * entries).sum(1) / entries.square().sum(1).clamp(min=1e-30)
        looks.append(Look(f"attention.{name}", name, weights.reshape(len(target), len(history)).cpu().numpy(), []))
    return looks


def _targets(network: DIN, batch: Batch, items: str, categories: str) -> torch.Tensor:
    """Return items and, where the log knows them, categories as DIN sees them, ``[N, T]``."""
    tables = network.inputs.tables
    parts = [tables["item"].gather(batch.ids(items)).of(0)]
    if network.inputs.has_category:
        parts.append(tables["category"].gather(batch.ids(categories)).of(0))
    return torch.cat(parts, 1)
