"""Globo's clicks of users who are in device groups 1 and 3, as samples of two domains.

A stand-in: the domains share their items, and there are ids instead of pre-extracted vectors. One click is one request; its
candidates are the article and nine distinct ones out of the last 20,000 clicks before it that the user has not clicked. A
sequence holds the user's earlier clicks from devices of one group.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from learners.samples import SampleBlock, SampleSchema, ragged_rows
from stream_app.config import Layer, resolve
from stream_app.entrants import build_entrants
from stream_app.replay import Replay
from stream_app.results import result_of
from stream_app.sample_sources import TopicSource
from stream_app.topics import Message, Topic
from stream_app.topics.memory import MemoryLog

DOMAINS = ("video", "product")
GROUPS = dict(zip((1, 3), DOMAINS, strict=True))
SCHEMA = SampleSchema(generation="globo", item_sequences=DOMAINS, has_query=False, has_category=False)
RECENT, NEGATIVES, LENGTH, BLOCK = 20_000, 9, 50, 200

Row = dict[str, Any]


def globo_results(data: Path, models: Mapping[str, Mapping[str, Any]], requests: int, seed: int) -> dict[str, Any]:
    """Replay with the models, each block scored just before it is learned; return the figures of the last half."""
    rows = globo_rows(data, requests, seed)
    replay = {"score_from": rows[len(rows) // 2]["ts"], "seed": seed, "hr_negatives": 300, "hr_share": 0.1}
    options = {"models": list(models), "eval": "immediate", **replay}
    config = resolve([Layer("benchmark", {"replay": options, "models": models})])
    run = Replay(config, TopicSource(topic_of(rows)), build_entrants(config, SCHEMA))
    run.run()
    return result_of(run)


def globo_rows(data: Path, requests: int, seed: int) -> list[Row]:
    """Return the first ``requests`` clicks of users in both groups, in order of time, as rows of :func:`block_of`."""
    columns = ["user_id", "click_article_id", "click_timestamp", "click_deviceGroup"]
    table = pq.read_table(data / "globo_clicks.parquet", columns=columns)
    users, items, times, groups = (table[name].to_numpy().astype(np.int64) for name in columns)
    first, second = (users[groups == group] for group in GROUPS)
    both = np.intersect1d(first, second)
    of_both = np.isin(users, both) & np.isin(groups, list(GROUPS))
    rng, recent = np.random.default_rng(seed), deque[int](maxlen=RECENT)
    histories: dict[int, dict[int, list[tuple[int, int]]]] = {}
    rows: list[Row] = []
    for user, item, ts, group, shared in zip(users, items + 1, times, groups, of_both, strict=True):
        if shared:
            own = histories.setdefault(int(user), {each: [] for each in GROUPS})
            if len(recent) > 1_000:
                seen = {i for history in own.values() for i, _ in history}
                candidates = drawn(rng, recent, {int(item), *seen})
                rows.append(row_of(int(user), int(ts), int(item), candidates, own))
            own[int(group)].append((int(item), int(ts)))
            own[int(group)] = own[int(group)][-LENGTH:]
        recent.append(int(item))
        if len(rows) >= requests:
            break
    return rows


def drawn(rng: np.random.Generator, recent: deque[int], out: set[int]) -> list[int]:
    found: list[int] = []
    for place in rng.integers(0, len(recent), 200):
        item = recent[int(place)]
        if item not in out:
            found.append(item)
            out.add(item)
        if len(found) == NEGATIVES:
            break
    return found


def row_of(user: int, ts: int, item: int, negatives: list[int], own: Mapping[int, list[tuple[int, int]]]) -> Row:
    sequences = {name: [entry for entry in own[group] if entry[1] < ts] for group, name in GROUPS.items()}
    labels = [1.0] + [0.0] * len(negatives)
    return {"user": user + 1, "ts": ts, "items": [item, *negatives], "labels": labels, **sequences}


def topic_of(rows: list[Row]) -> Topic:
    """Return rows as a topic of samples."""
    topic = MemoryLog().create("samples", 1)
    for start in range(0, len(rows), BLOCK):
        part = rows[start : start + BLOCK]
        topic.append(0, [Message(part[-1]["ts"], b"", block_of(part, start).to_ipc())])
    return topic


def block_of(rows: list[Row], first: int) -> SampleBlock:
    """Return rows ``{"user", "ts", "items", "labels", DOMAIN: [(item, ts), ...]}`` as a block without categories."""
    n, ts, zeros = len(rows), np.array([row["ts"] for row in rows]), np.zeros(len(rows), np.int64)
    items = ragged_rows([row["items"] for row in rows], np.int64)
    columns: dict[str, Any] = {"partition": np.zeros(n, np.int32), "seq": np.arange(first, first + n)}
    columns |= {"request": np.arange(first + 1, first + n + 1), "user": np.array([row["user"] for row in rows])}
    columns |= {"ts": ts, "due": ts, "query": zeros, "domain": zeros, "query_category": np.zeros((n, 4), np.int64)}
    for name in DOMAINS:
        ids = ragged_rows([[item for item, _ in row[name]] for row in rows], np.int64)
        columns[f"{name}.item"], columns[f"{name}.category"] = ids, ids._replace(values=np.zeros_like(ids.values))
        columns[f"{name}.ts"] = ragged_rows([[at for _, at in row[name]] for row in rows], np.int64)
        columns[f"{name}.fresh"] = np.zeros(n, np.int32)
    columns["candidate.item"] = items
    for part in ("category", "domain"):
        columns[f"candidate.{part}"] = items._replace(values=np.zeros_like(items.values))
    columns["candidate.position"] = items._replace(values=np.full(len(items.values), -1, np.int32))
    columns["candidate.label"] = ragged_rows([row["labels"] for row in rows], np.float32)
    columns["candidate.weight"] = items._replace(values=np.ones(len(items.values), np.float32))
    return SampleBlock.from_columns(SCHEMA, columns)
