"""A small world of two domains as samples in memory: ids and categories, no vectors, most users new to videos.

A user likes two of ten topics in products, and two in videos: the same ones with probability ``shared``, else others drawn
anew. Each user comes with 4 to 15 clicks on products and sees a handful of video pages; a video of a liked topic is clicked
with probability ``1 / (1 + exp(2.2 - 3))``, another with ``1 / (1 + exp(2.2))``. Which product category goes with which video
category must be learned.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from learners.samples import SampleBlock, SampleSchema, ragged_rows
from stream_app.config import Layer, resolve
from stream_app.replay import Replay, build_entrants
from stream_app.results import result_of
from stream_app.sample_sources import TopicSource
from stream_app.topics import Message, Topic
from stream_app.topics.memory import MemoryLog

DOMAINS = ("video", "product")
TOPICS, ITEMS, CANDIDATES, PAGES, BLOCK, LENGTH = 10, 400, 8, 5, 200, 50
START, APART = 1_750_000_000_000, 2_000
BASE, LIKED = -2.2, 3.0

Entries = list[tuple[int, int]]


def schema(*, categories: bool, truth: bool) -> SampleSchema:
    """Return the samples' schema."""
    return SampleSchema(
        generation="two-domains", item_sequences=DOMAINS, has_query=False, has_category=categories, has_truth=truth
    )


def results_of(
    topic: Topic, of: SampleSchema, models: Mapping[str, Mapping[str, Any]], replay: dict[str, Any]
) -> dict[str, Any]:
    """Replay samples in memory, scored just before they are learned; return the result."""
    options = {"models": list(models), "eval": "immediate", "hr_negatives": 300, **replay}
    config = resolve([Layer("benchmark", {"replay": options, "models": models})])
    run = Replay(config, TopicSource(topic), build_entrants(config, of))
    run.run()
    result = result_of(run)
    for entrant in run.entrants:
        if entrant.name in result["models"]:
            result["models"][entrant.name]["ccl"] = entrant.learner.describe().get("ccl", {})
    return result


def world_results(models: Mapping[str, Mapping[str, Any]], requests: int, shared: float, seed: int) -> dict[str, Any]:
    """Make a world, replay it with the models, score its last half."""
    of = schema(categories=True, truth=True)
    rows = world(requests, shared, seed)
    middle = rows[len(rows) // 2]["ts"]
    return results_of(
        topic_of(rows, of), of, models, {"score_from": middle, "seed": seed, "hr_share": 0.1, "batch_requests": 25}
    )


def world(requests: int, shared: float, seed: int) -> list[dict[str, Any]]:
    """Return requests in order of time."""
    rng, n_users = np.random.default_rng(seed), max(1, requests // PAGES)
    tastes = [{"product": rng.choice(TOPICS, 2, replace=False)} for _ in range(n_users)]
    for taste in tastes:
        taste["video"] = taste["product"] if rng.random() < shared else rng.choice(TOPICS, 2, replace=False)
    histories: dict[int, dict[str, Entries]] = {}
    rows = []
    for at in range(requests):
        # Users come one after the other, some hundred at a time.
        user = int(np.clip(at / PAGES + rng.normal(0, 100), 0, n_users - 1))
        ts = START + at * APART
        if user not in histories:
            products = [
                (int(of_topic(rng, taste)), ts - int(rng.integers(1, 90_000_000))) for taste in _several(rng, tastes[user])
            ]
            histories[user] = {"product": sorted(products, key=lambda entry: entry[1]), "video": []}
        own = histories[user]
        items = rng.choice(ITEMS, CANDIDATES, replace=False)
        truth = 1 / (1 + np.exp(-(BASE + LIKED * np.isin(items % TOPICS, tastes[user]["video"]))))
        labels = rng.random(CANDIDATES) < truth
        kept = {name: entries[-LENGTH:] for name, entries in own.items()}
        rows.append({"user": user + 1, "ts": ts, "items": items + 1, "labels": labels, "truth": truth, **kept})
        own["video"] = own["video"] + [(int(item), ts + 1_000) for item in items[labels]]
    return rows


def _several(rng: np.random.Generator, taste: Mapping[str, npt.NDArray[np.int64]]) -> npt.NDArray[np.int64]:
    return rng.choice(taste["product"], int(rng.integers(4, 16)))


def of_topic(rng: np.random.Generator, topic: int) -> int:
    return int(rng.integers(0, ITEMS // TOPICS)) * TOPICS + int(topic)


def topic_of(rows: list[dict[str, Any]], of: SampleSchema) -> Topic:
    """Return rows as a topic of samples."""
    topic = MemoryLog().create("samples", 1)
    for start in range(0, len(rows), BLOCK):
        part = rows[start : start + BLOCK]
        topic.append(0, [Message(part[-1]["ts"], b"", block_of(part, start, of).to_ipc())])
    return topic


def block_of(rows: list[dict[str, Any]], first: int, of: SampleSchema) -> SampleBlock:
    """Return rows ``{"user", "ts", "items", "labels", "truth"?, DOMAIN: [(item, ts), ...]}`` as a block.

    Items of the second domain have ids of their own; categories, where the schema has them, are topics within a domain.
    """
    n, ts, zeros = len(rows), np.array([row["ts"] for row in rows]), np.zeros(len(rows), np.int64)
    items = ragged_rows([row["items"] for row in rows], np.int64)
    columns: dict[str, Any] = {"partition": np.zeros(n, np.int32), "seq": np.arange(first, first + n)}
    columns |= {"request": np.arange(first + 1, first + n + 1), "user": np.array([row["user"] for row in rows])}
    columns |= {"ts": ts, "due": ts, "query": zeros, "domain": zeros, "query_category": np.zeros((n, 4), np.int64)}
    for number, name in enumerate(of.item_sequences):
        ids = ragged_rows([[item for item, _ in row[name]] for row in rows], np.int64)
        apart = number * 10_000_000 if of.has_category else 0  # Globo's domains share their items
        columns[f"{name}.item"] = ids._replace(values=ids.values + apart + of.has_category)
        columns[f"{name}.category"] = ids._replace(values=(1 + ids.values % TOPICS + number * TOPICS) * of.has_category)
        columns[f"{name}.ts"] = ragged_rows([[at for _, at in row[name]] for row in rows], np.int64)
        columns[f"{name}.fresh"] = np.zeros(n, np.int32)
    columns["candidate.item"] = items
    columns["candidate.category"] = items._replace(values=(1 + (items.values - 1) % TOPICS) * of.has_category)
    columns["candidate.domain"] = items._replace(values=np.zeros_like(items.values))
    columns["candidate.position"] = items._replace(values=np.full(len(items.values), -1, np.int32))
    columns["candidate.label"] = ragged_rows([row["labels"] for row in rows], np.float32)
    columns["candidate.weight"] = items._replace(values=np.ones(len(items.values), np.float32))
    if of.has_truth:
        columns["candidate.truth"] = ragged_rows([row["truth"] for row in rows], np.float32)
    return SampleBlock.from_columns(of, columns)
