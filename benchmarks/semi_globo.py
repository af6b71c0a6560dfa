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

from benchmarks.semi_world import DOMAINS, results_of, schema, topic_of

GROUPS = dict(zip((1, 3), DOMAINS, strict=True))
SCHEMA = schema(categories=False, truth=False)
RECENT, NEGATIVES, LENGTH = 20_000, 9, 50


def globo_results(data: Path, models: Mapping[str, Mapping[str, Any]], requests: int, seed: int) -> dict[str, Any]:
    """Replay with the models, score the last half, return the result."""
    rows = globo_rows(data, requests, seed)
    replay = {"score_from": rows[len(rows) // 2]["ts"], "seed": seed, "hr_share": 0.1}
    return results_of(topic_of(rows, SCHEMA), SCHEMA, models, replay)


def globo_rows(data: Path, requests: int, seed: int) -> list[dict[str, Any]]:
    """Return the first ``requests`` clicks of users in both groups, in order of time, as rows of ``semi_world.block_of``."""
    columns = ["user_id", "click_article_id", "click_timestamp", "click_deviceGroup"]
    table = pq.read_table(data / "globo_clicks.parquet", columns=columns)
    users, items, times, groups = (table[name].to_numpy().astype(np.int64) for name in columns)
    first, second = (users[groups == group] for group in GROUPS)
    both = np.intersect1d(first, second)
    of_both = np.isin(users, both) & np.isin(groups, list(GROUPS))
    rng, recent = np.random.default_rng(seed), deque[int](maxlen=RECENT)
    histories: dict[int, dict[int, list[tuple[int, int]]]] = {}
    rows: list[dict[str, Any]] = []
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


def row_of(user: int, ts: int, item: int, negatives: list[int], own: Mapping[int, list[tuple[int, int]]]) -> dict[str, Any]:
    sequences = {name: [entry for entry in own[group] if entry[1] < ts] for group, name in GROUPS.items()}
    labels = [1.0] + [0.0] * len(negatives)
    return {"user": user + 1, "ts": ts, "items": [item, *negatives], "labels": labels, **sequences}
