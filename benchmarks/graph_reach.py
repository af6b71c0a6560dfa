"""How far a log's item graph reaches, and where EGIN gains by it: why it does on Globo and does not on trivago.

    python benchmarks/graph_reach.py --log DIR --config benchmarks/configs/globo.toml
    python benchmarks/graph_reach.py --log DIR --config benchmarks/configs/trivago.toml --seeds 3

The last fifth of the requests counts. *Reached*: of the candidates that are not in the user's own history, the share that an
earlier i2i edge of somebody else joins to it, among the clicked and among the others. A graph can only help where both differ,
and where there are candidates that it reaches. *Gain*: gAUC of ``egin`` less that of ``egin-no-graph``, both scored and learned
in one pass as in a replay, on requests whose clicked candidate was in the history and on those where it was not; ± is 1.96
standard errors, by user.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import torch

from benchmarks.replay import in_memory
from learners.batch import CANDIDATES, Batch
from learners.graph.subgraph import GraphConfig, subgraph
from learners.metrics.ranking import rank_requests
from learners.samples import SampleBlock
from stream_app.config import Layer, RunConfig, read_layer, resolve
from stream_app.entrants import build_entrants
from stream_app.launch import with_defaults
from stream_app.log_config import joined_layers
from stream_app.profile import Profile
from stream_app.sample_sources import open_source
from stream_app.topics.embedded import open_log

MODELS = ("egin", "egin-no-graph")
SEQUENCE = "click"
AUC = 0  # column of rank_requests
Ids = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


class Graph:
    """The i2i pairs so far, each by one number, and what was counted on the way."""

    def __init__(self, has_queries: bool) -> None:
        self._has_queries = has_queries
        self._pairs: set[int] = set()
        self.edges = dict.fromkeys(("i2i", "q2q", "q2i"), 0)
        self.clicks: dict[int, int] = {}
        self.asked: dict[int, set[int]] = {}

    def learn(self, block: SampleBlock, step: int) -> None:
        """Take the block's edges and queries in."""
        batch = Batch(block, torch.device("cpu"))
        graph = subgraph(batch, SEQUENCE, GraphConfig(), 0, "egin", step, queries=self._has_queries)
        ids = graph.items.ids.values
        self._pairs.update(pairs(ids[graph.i2i.anchor], ids[graph.i2i.positive]).tolist())
        self.edges["i2i"] += graph.i2i.n_edges
        self.edges["q2q"] += graph.q2q.n_edges
        self.edges["q2i"] += graph.q2i.n_edges + graph.i2q.n_edges
        for item in batch.ids(CANDIDATES)[batch.values("candidate.label") > 0].tolist():
            self.clicks[item] = self.clicks.get(item, 0) + 1
        for query, user in zip(block.column("query").tolist(), block.column("user").tolist(), strict=True):
            if query:
                self.asked.setdefault(query, set()).add(user)

    def reaches(self, item: int, history: Ids) -> bool:
        """Whether an edge joins an item to one of a history."""
        return not self._pairs.isdisjoint(pairs(history, np.full(len(history), item)).tolist())


def pairs(one: Ids, other: Ids) -> Ids:
    """Return a number for each pair of ids: among a million, two share one with a chance of 10^-7."""
    return one * np.int64(-7046029254386353131) + other


class Reach:
    """Candidates by whether they were clicked: in the history, elsewhere, reached."""

    def __init__(self) -> None:
        self.counts = np.zeros((2, 3), np.int64)
        self.clicks: list[int] = []
        self.known_query: list[bool] = []
        self.history: list[int] = []

    def count(self, block: SampleBlock, graph: Graph) -> None:
        """Count a block that the graph has not learned."""
        items, offsets = block.ragged(CANDIDATES)
        labels = block.ragged("candidate.label").values > 0
        past, bounds = block.ragged(f"{SEQUENCE}.item")
        for row, (query, user) in enumerate(zip(block.column("query").tolist(), block.column("user").tolist(), strict=True)):
            history = np.unique(past[bounds[row] : bounds[row + 1]])
            self.history.append(len(history))
            self.known_query.append(bool(graph.asked.get(query, set()) - {user}))
            known = set(history.tolist())
            for at in range(offsets[row], offsets[row + 1]):
                item, clicked = int(items[at]), int(labels[at])
                where = 0 if item in known else 2 if graph.reaches(item, history) else 1
                self.counts[clicked, where] += 1
                if clicked:
                    self.clicks.append(graph.clicks.get(item, 0))


class Gain(NamedTuple):
    """gAUC of one model less another's: mean over requests, and its standard error by user."""

    mean: float
    error: float
    requests: int


def gain_of(differences: Floats, users: Ids) -> Gain:
    """Return the gain over requests, ``[R]`` each; NaN counts nowhere."""
    counted = ~np.isnan(differences)
    values, of = differences[counted], np.unique(users[counted], return_inverse=True)[1]
    mean = float(values.mean()) if len(values) else float("nan")
    by_user = np.bincount(of, values - mean) if len(values) else np.zeros(0)
    return Gain(mean, float(np.sqrt((by_user**2).sum()) / max(len(values), 1)), len(values))


def request_aucs(config: RunConfig, blocks: list[SampleBlock], first: int) -> dict[str, Floats]:
    """Score, then learn every block; return the AUC of each request of the blocks from ``first`` on, by model."""
    entrants = [e for e in build_entrants(config, blocks[0].schema) if e.name in MODELS]
    found: dict[str, list[Floats]] = {entrant.name: [] for entrant in entrants}
    for at, block in enumerate(blocks):
        labels = block.ragged("candidate.label")
        for entrant in entrants:
            scores, _ = entrant.learner.predict_learn(block)
            if at >= first:
                ranked = rank_requests(scores, (labels.values > 0).astype(np.uint8), labels.offsets)
                found[entrant.name].append(ranked[:, AUC])
    return {name: np.concatenate(parts) for name, parts in found.items()}


def clicked_before(blocks: list[SampleBlock]) -> Iterator[bool]:
    """Yield of each request whether a clicked candidate is in the history."""
    for block in blocks:
        items, offsets = block.ragged(CANDIDATES)
        labels = block.ragged("candidate.label").values > 0
        past, bounds = block.ragged(f"{SEQUENCE}.item")
        for row in range(len(block)):
            candidates = slice(offsets[row], offsets[row + 1])
            yield bool(np.isin(items[candidates][labels[candidates]], past[bounds[row] : bounds[row + 1]]).any())


def show_reach(blocks: list[SampleBlock], first: int) -> None:
    """Print what the graph knows of the last blocks' candidates."""
    graph, reach = Graph(blocks[0].schema.has_query), Reach()
    for at, block in enumerate(blocks):
        if at >= first:
            reach.count(block, graph)
        graph.learn(block, at)
    n = sum(map(len, blocks))
    print("edges per request: " + ", ".join(f"{kind} {count / n:.2f}" for kind, count in graph.edges.items()))
    print(f"different items in a history: median {np.median(reach.history):.0f}, mean {np.mean(reach.history):.1f}")
    never = np.mean(np.equal(reach.clicks, 0))
    print(f"earlier clicks on the clicked item: median {np.median(reach.clicks):.0f}, none {never:.1%}")
    if graph.asked:
        askers = np.array([len(users) for users in graph.asked.values()])
        print(f"{len(askers):,} queries, by one user alone {np.mean(askers == 1):.1%}; ", end="")
        print(f"requests whose query somebody else had asked before {np.mean(reach.known_query):.1%}")
    print(f"{'candidates':12}{'n':>10}{'in the history':>16}{'reached, of the others':>25}")
    for name, (own, out, reached) in zip(("not clicked", "clicked"), reach.counts.tolist(), strict=True):
        print(f"{name:12}{own + out + reached:10,}{own / (own + out + reached):16.1%}{reached / (out + reached):25.1%}")


def show_gain(config: RunConfig, blocks: list[SampleBlock], first: int, seeds: int) -> None:
    """Print what EGIN gains by its graph on the last blocks."""
    before = np.array([*clicked_before(blocks[first:])])
    users = np.concatenate([block.column("user") for block in blocks[first:]])
    found = []
    for seed in range(seeds):
        seeded = msgspec.structs.replace(config, replay=msgspec.structs.replace(config.replay, seed=seed))
        aucs = request_aucs(seeded, blocks, first)
        found.append(aucs["egin"] - aucs["egin-no-graph"])
    differences = np.mean(found, axis=0)
    for name, chosen in (("all", before | ~before), ("clicked item in the history", before), ("not in it", ~before)):
        gain = gain_of(np.where(chosen, differences, np.nan), users)
        print(f"gain in gAUC, {name:28}{gain.mean:+.4f} ± {1.96 * gain.error:.4f}   {gain.requests:,} requests")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--log", type=Path, required=True, help="a joined log")
    parser.add_argument("--config", type=Path, required=True, help="has the models egin and egin-no-graph")
    parser.add_argument("--seeds", type=int, default=1, help="0: how far the graph reaches, without the gain")
    options = parser.parse_args()
    torch.set_num_threads(1)
    flags = {"models": MODELS, "eval": "immediate", "threads": 1}
    layers = [*joined_layers(options.log), read_layer(options.config), Layer("the benchmark", {"replay": flags})]
    config = with_defaults(resolve(layers))
    with open_log(options.log) as log:
        blocks = in_memory(open_source(log, config.join, Profile()), config, 1 << 62)
    first = len(blocks) * 4 // 5
    show_reach(blocks, first)
    if options.seeds:
        show_gain(config, blocks, first, options.seeds)


if __name__ == "__main__":
    main()
