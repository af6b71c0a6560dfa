"""The generator's two domains as a log with a past: sessions that nobody labelled, then pages that are learned from.

The first part of the log gives pairs of sessions, and histories to later pages; no model learns a click from it. CCL makes
epochs over its pairs (Algorithm 1, line 5). From then on video pages are scored and learned one batch after the other, by all
models alike. What is known of the world, and of no log, gives two rows more: the best possible scores, and SEMI whose
projection of item vectors begins where the vectors of both domains mean the same (``aligned``): as far as CCL could bring it.

Legend: ``N`` items, ``D`` latent dimensions, ``V`` numbers of a vector, ``T`` width of a target.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import torch

from learners.ccl_pairs import without_candidates
from learners.models.semi import SEMILearner
from learners.samples import SampleBlock
from stream_app.config import Layer, RunConfig, resolve
from stream_app.entrants import build_entrants
from stream_app.events import hash_id
from stream_app.item_vectors import ItemVectors, item_vectors
from stream_app.join import stream_samples
from stream_app.replay import Replay
from stream_app.results import result_of
from stream_app.sample_sources import TopicSource
from stream_app.simulate.draws import Purpose, table_rng
from stream_app.simulate.options import SimulateOptions
from stream_app.simulate.run import run_simulate
from stream_app.simulate.world import World
from stream_app.topics import Message
from stream_app.topics.memory import MemoryLog

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
HELD_OUT = 200
"""Users whose pairs CCL does not learn from, at most; a fifth of all where that is less."""
DOMAINS = ("video", "product")


class Stream(NamedTuple):
    """A simulated log, cut in two."""

    log: MemoryLog
    world: World
    past: SampleBlock
    pages: SampleBlock

    @property
    def seed(self) -> int:
        """Of the world."""
        return self.world.options.seed


def simulated(shared: float, seed: int, *, requests: int, pages: int, **others: Any) -> Stream:
    """Return the log of a seed whose last ``pages`` video pages are learned from.

    Args:
        shared: part of a user's interests that is the same in both domains.
        seed: of the world.
        requests: of both domains, all in all.
        pages: at most half of all.
        others: more options of the generator.
    """
    options: dict[str, Any] = {
        "requests": requests, "shared": shared, "seed": seed, "users": requests // 10, "items": 3_000, "partitions": 1,
        "domains": 2, "pages_of": "video", "video_share": 0.5, "query_share": 0.0, "concurrency": 200,
        "affinity": 4.0, "repeat": 0.0, "quality": 0.0,
    }  # fmt: skip
    given = SimulateOptions(**{**options, **others})
    log = MemoryLog()
    report = run_simulate(given, log, None)
    sequences = {name: msgspec.structs.replace(each, length=20) for name, each in report.join.item_sequences.items()}
    block = SampleBlock.concat(list(stream_samples(log, msgspec.structs.replace(report.join, item_sequences=sequences), 0)))
    cut = max(len(block) // 2, len(block) - pages)
    return Stream(log, World(given), block.slice(0, cut), block.slice(cut, len(block)))


class Pairs:
    """Pairs of sessions of a stream's past: of a user any row whose sessions are long enough.

    Args:
        past: rows.
        least: smallest lengths of the two sessions.
        seed: of the draws.
    """

    def __init__(self, past: SampleBlock, least: tuple[int, int], seed: int) -> None:
        first, second = (past.ragged(f"{name}.item").lengths for name in DOMAINS)
        self._rows, self._rng = without_candidates(past), np.random.default_rng(seed)
        fit = np.flatnonzero((first >= least[0]) & (second >= least[1]))
        users = past.column("user")[fit]
        self._of = {int(user): fit[users == user] for user in np.unique(users)}
        names = self._rng.permutation(np.array(list(self._of), np.int64))
        n_held = min(HELD_OUT, len(names) // 5)
        self.held, self.users = names[:n_held], names[n_held:]

    def batches(self, size: int) -> Iterator[SampleBlock]:
        """Yield batches for ever, a random row of each of ``size`` users; each epoch sees every user but those left over."""
        size = min(size, len(self.users))
        while True:
            users = self._rng.permutation(self.users)
            for start in range(0, len(users) - size + 1, size):
                yield self._rows.take(np.array([self._rng.choice(self._of[u]) for u in users[start : start + size].tolist()]))

    def held_out(self) -> SampleBlock:
        """Return the newest row of each user that is never learned from."""
        return self._rows.take(np.array([self._of[user][-1] for user in self.held.tolist()], np.int64))


def pretrain(learner: SEMILearner, pairs: Pairs, steps: int) -> dict[str, float]:
    """Fill the dictionaries, make ``steps`` steps of CCL; return the figures of the last one."""
    contrast, stats = learner.network.contrast, {}
    assert contrast is not None, "a model with ccl"
    for rows in pairs.batches(learner.config.ccl_batch):
        first, second = contrast.sessions(rows)
        if contrast.ccl.filled < 1.0:
            contrast.ccl.fill(first, second, rows.column("user"))
        elif contrast.ccl.steps >= steps:
            break
        else:
            stats = dict(contrast.ccl.step(first, second, rows.column("user")))
    return stats


def align(learner: SEMILearner, world: World) -> None:
    """Let the projection begin as the inverse of how the generator turns latent vectors, the same for both domains."""
    options, vectors = world.options, learner.network.inputs.vectors
    assert vectors is not None, "a run with vectors"
    turns = table_rng(options.seed, Purpose.VECTORS).standard_normal((options.domains, options.dim, options.vector_dim))
    back = np.linalg.pinv(np.concatenate(list(turns))) @ np.concatenate([np.eye(options.dim)] * options.domains)  # [V, D]
    with torch.no_grad():
        weight, bias = vectors.projection.weight, vectors.projection.bias
        weight.zero_()
        weight[: options.dim] = 3.0 * torch.from_numpy(back.T).to(weight)
        bias.zero_()


def cosine_auc(learner: SEMILearner, stream: Stream) -> float:
    """Return the AUC of cos(target, mean of the products), all through the projection, over the stream's pages.

    No label has a part in it: one half is that vectors of different domains do not mean the same.
    """
    vectors, pages = learner.network.inputs.vectors, stream.pages
    assert vectors is not None, "a run with vectors"
    with torch.no_grad():
        projected = vectors.projection(torch.from_numpy(stream.world.vectors().astype(np.float32))).numpy()
    projected -= projected.mean(0)
    targets, products = pages.ragged("candidate.item"), pages.ragged("product.item")
    place = _places(stream.world)
    sums = np.concatenate([np.zeros((1, projected.shape[1])), np.cumsum(projected[place(products.values)], 0)])
    mean = sums[products.offsets[1:]] - sums[products.offsets[:-1]]
    rows = np.repeat(np.arange(len(pages)), targets.lengths)
    scores = (_unit(mean)[rows] * _unit(projected[place(targets.values)])).sum(1)
    return auc(pages.ragged("candidate.label").values > 0.5, scores)


def retrieval(learner: SEMILearner, rows: SampleBlock) -> float:
    """Return where a user's own products rank among those of all rows, asked by the videos: 1 is first, one half a guess."""
    contrast = learner.network.contrast
    assert contrast is not None, "a model with ccl"
    queries, keys = (contrast.ccl.encode(n, session) for n, session in enumerate(contrast.sessions(rows)))
    scores = queries @ keys.T
    above = (scores > scores.diagonal().unsqueeze(1)).sum(1)
    return 1.0 - float(above.float().mean()) / max(1, len(rows) - 1)


def auc(positive: npt.NDArray[np.bool_], scores: Floats) -> float:
    ranks = np.empty(len(scores))
    ranks[np.argsort(scores, kind="stable")] = np.arange(1, len(scores) + 1)
    n = int(positive.sum())
    return float((ranks[positive].sum() - n * (n + 1) / 2) / (n * (len(scores) - n)))


def _unit(rows: Floats) -> Floats:
    unit: Floats = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)
    return unit


def _places(world: World) -> Any:
    items = np.array([hash_id("item", f"i{i}") for i in range(len(world.item_category))], np.int64)
    order = np.argsort(items)
    return lambda ids: order[np.searchsorted(items[order], ids)]


def stream_results(stream: Stream, models: Mapping[str, Mapping[str, Any]], hr_share: float = 0.0) -> dict[str, Any]:
    """Replay a stream's pages with the models.

    A model is its options and, of CCL and this benchmark alone, ``steps`` of CCL on the past, and ``aligned``.
    """
    mine = {name: {k: v for k, v in model.items() if k not in ("steps", "aligned")} for name, model in models.items()}
    config, items = _config(stream, mine, hr_negatives=300 if hr_share else 0, hr_share=hr_share or 1.0)
    entrants = build_entrants(config, stream.pages.schema, vectors=items.store)
    items.advance(int(stream.past.column("due")[-1]))
    said: dict[str, dict[str, float]] = {}
    for entrant in entrants:
        model, learner = models.get(entrant.name, {}), entrant.learner
        if not isinstance(learner, SEMILearner):
            continue
        if model.get("aligned"):
            align(learner, stream.world)
        if steps := model.get("steps"):
            pairs = Pairs(stream.past, learner.config.ccl_min_sessions, stream.seed)
            stats = pretrain(learner, pairs, steps)
            said[entrant.name] = {"retrieval": retrieval(learner, pairs.held_out()), "loss": stats["ccl.loss.first"]}
        said.setdefault(entrant.name, {})["cosine"] = cosine_auc(learner, stream)
    topic = stream.log.create("samples", 1)
    topic.append(0, [Message(int(block.column("due")[-1]), b"", block.to_ipc()) for block in _blocks(stream.pages)])
    run = Replay(config, TopicSource(topic), entrants, items=items)
    run.run()
    result = result_of(run)
    for entrant in run.entrants:
        if entrant.name in result["models"]:
            ccl = entrant.learner.describe().get("ccl", {})
            result["models"][entrant.name] |= {"probe": said.get(entrant.name, {}), "ccl": ccl}
    return result


def replayed_results(stream: Stream, models: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Replay past and pages in one pass, as ``freshet replay`` does: the past feeds CCL alone (``ccl_pretrain_until``)."""
    until = int(stream.pages.column("ts")[0])
    mine = {name: {**model, "ccl_pretrain_until": until} for name, model in models.items()}
    config, items = _config(stream, mine, score_from=until)
    topic = stream.log.create("samples", 1)
    for part in (stream.past, stream.pages):
        topic.append(0, [Message(int(block.column("due")[-1]), b"", block.to_ipc()) for block in _blocks(part)])
    entrants = build_entrants(config, stream.pages.schema, vectors=items.store)
    run = Replay(config, TopicSource(topic), entrants, items=items)
    run.run()
    result = result_of(run)
    for entrant in run.entrants:
        if entrant.name in result["models"]:
            result["models"][entrant.name]["ccl"] = entrant.learner.describe().get("ccl", {})
    return result


def _config(stream: Stream, models: Mapping[str, Mapping[str, Any]], **replay: Any) -> tuple[RunConfig, ItemVectors]:
    """Return what a replay of the stream is told, more of its table ``[replay]`` among it, and the items' vectors."""
    options = stream.world.options
    told = {"models": list(models), "eval": "immediate", "seed": stream.seed, "batch_requests": 25, "bootstrap": 0, **replay}
    layers = {"models": models, "replay": told, "vectors": {"dim": options.vector_dim, "capacity": 2 * options.items}}
    config = resolve([Layer("benchmark", layers)])
    items = item_vectors(stream.log, config)
    assert items is not None, "the config has vectors.dim"
    return config, items


def _blocks(pages: SampleBlock, size: int = 200) -> Iterator[SampleBlock]:
    for start in range(0, len(pages), size):
        yield pages.slice(start, min(start + size, len(pages)))
