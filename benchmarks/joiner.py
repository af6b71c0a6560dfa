"""Events per second of the joiner on the embedded log, beside a plain prototype of the same work in the same run.

    python benchmarks/joiner.py [--events 200000] [--repeats 3] [--rules] [--json]

One event is an action or a whole page of ten candidates; half of the events are pages with a query, and each page gets a click
within a minute, which names its request. Measured is all of :func:`stream_app.join.join_log`: reading the log, decoding,
joining with the default config, state in RocksDB, blocks of samples written back to the log. The prototype reads the same log
and only decodes, hashes the ids, puts a user's clicks and a page into RocksDB and makes blocks: no order, no labels, no due
times, no recovery. ``--rules`` joins actions with a domain and a value, also by a config with two sequences by domain and
labels from a value on. CPU time counts all threads of the process, RocksDB's among them. The sides take turns, so that a
busy machine slows all of them.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import statistics
import struct
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from rocksdict import Options, Rdict, WriteBatch

from learners.samples import Ragged, SampleBlock
from stream_app.events import ACTIONS, IMPRESSIONS, Action, IdHashes, Impression, ImpressionItem
from stream_app.join import join_log
from stream_app.joiner.blocks import sample_schema
from stream_app.joiner.config import ItemSequence, JoinConfig
from stream_app.topics import Log, Message
from stream_app.topics.embedded import EmbeddedLog

PAGE = 10
READ_RECORDS = 8_192
CONFIG = JoinConfig()
RULES = JoinConfig(
    label_min_value={"click": 0.5},
    item_sequences={
        "video": ItemSequence(domains=("video",)),
        "shop": ItemSequence(domains=("shop",), min_value={"click": 0.1}),
    },
)


def fill(log: Log, n_events: int, ruled: bool, seed: int = 0) -> None:
    """Write pages every 50 ms of event time, of users who come back some twenty times, and a click for each page.

    ``ruled`` gives clicks a domain and a value.
    """
    draw = random.Random(seed)
    users = [f"user-{i}" for i in range(max(1, n_events // 40))]
    items = [f"item-{i}" for i in range(20_000)]
    ts = 1_700_000_000_000
    pages: list[Message] = []
    clicks: list[Message] = []
    for n in range(n_events // 2):
        ts += int(draw.expovariate(1 / 50))
        user, shown = draw.choice(users), draw.sample(range(len(items)), PAGE)
        candidates = [ImpressionItem(items[item], f"category-{item % 200}", at) for at, item in enumerate(shown)]
        query = f"query {shown[0] % 3_000}"
        page = Impression(f"request-{n}", user, ts, candidates, query=query)
        pages.append(Message(ts, user.encode(), msgspec.json.encode(page)))
        clicked, clicked_ts = shown[int(PAGE * draw.random() ** 2)], ts + draw.randrange(1_000, 60_000)
        click = Action(user, items[clicked], clicked_ts, "click", f"request-{n}", category=f"category-{clicked % 200}")
        if ruled:
            click = msgspec.structs.replace(click, domain="video" if clicked_ts % 2 else "shop", value=draw.random())
        clicks.append(Message(clicked_ts, user.encode(), msgspec.json.encode(click)))
    log.create(IMPRESSIONS, 1).append(0, pages)
    log.create(ACTIONS, 1).append(0, sorted(clicks))


def join(log: Log, folder: Path) -> int:
    return join_log(log, folder / "state", CONFIG).events


def join_by_rules(log: Log, folder: Path) -> int:
    return join_log(log, folder / "state", RULES).events


def prototype(log: Log, folder: Path) -> int:
    """Decode, hash, put, make blocks: what no joiner can do without."""
    options = Options(raw_mode=True)
    options.create_if_missing(True)
    db = Rdict(str(folder / "prototype"), options)
    topics = [log.topic(IMPRESSIONS), log.topic(ACTIONS)]
    samples = log.create("prototype", 1)
    parse_page, parse_click = msgspec.json.Decoder(Impression).decode, msgspec.json.Decoder(Action).decode
    items, users, categories, queries = map(IdHashes, ("item", "user", "category", "query"))
    clicks: dict[int, bytes] = {}
    entry, ids, offset_key, user_key = (struct.Struct(form).pack for form in ("<3q", f"<{PAGE}q", ">cQ", ">cq"))
    rows: list[tuple[int, int, int, bytes, bytes, bytes]] = []
    positions = [0, 0]
    while True:
        pages, actions = (topic.read(0, at, READ_RECORDS) for topic, at in zip(topics, positions, strict=True))
        if not pages and not actions:
            return sum(positions)
        positions = [positions[0] + len(pages), positions[1] + len(actions)]
        batch = WriteBatch(raw_mode=True)
        for record in actions:
            click = parse_click(record.value)
            user = users[click.user_id]
            history = clicks.get(user, b"") + entry(items[click.item_id], categories[click.category or ""], click.ts)
            clicks[user] = history[-24 * 50 :]
            batch.put(user_key(b"u", user), clicks[user])
        for record in pages:
            page = parse_page(record.value)
            user = users[page.user_id]
            shown = ids(*[items[item.item_id] for item in page.items])
            shown_categories = ids(*[categories[item.category or ""] for item in page.items])
            batch.put(offset_key(b"r", record.offset), shown + shown_categories)
            rows.append((user, page.ts, queries[page.query or ""], shown, shown_categories, clicks.get(user, b"")))
            if len(rows) == CONFIG.block_requests:
                block = _block(rows)
                samples.append(0, [Message(rows[-1][1], b"", block.to_ipc())])
                rows = []
        db.write(batch)


def _block(rows: list[tuple[int, int, int, bytes, bytes, bytes]]) -> SampleBlock:
    n_rows, n = len(rows), len(rows) * PAGE
    history = np.frombuffer(b"".join([row[5] for row in rows]), np.int64).reshape(-1, 3)
    ends = np.cumsum([0, *(len(row[5]) // 24 for row in rows)])
    pages, none = np.arange(0, n + 1, PAGE), np.zeros(n_rows + 1, np.int64)
    zeros = np.zeros(n_rows, np.int64)
    columns: dict[str, Any] = dict.fromkeys(("seq", "request", "due", "domain"), zeros)
    columns |= {name: np.array([row[at] for row in rows]) for at, name in enumerate(("user", "ts", "query"))}
    columns |= {name: zeros.astype(np.int32) for name in ("partition", "click.fresh", "query.fresh")}
    columns["query_category"] = np.zeros((n_rows, 4), np.int64)
    for at, name in enumerate(("item", "category", "ts")):
        columns[f"click.{name}"] = Ragged(np.ascontiguousarray(history[:, at]), ends)
    columns["query.id"] = columns["query.ts"] = Ragged(np.zeros(0, np.int64), none)
    columns["query.category"] = Ragged(np.zeros((0, 4), np.int64), none)
    columns["candidate.item"] = Ragged(np.frombuffer(b"".join([row[3] for row in rows]), np.int64), pages)
    columns["candidate.category"] = Ragged(np.frombuffer(b"".join([row[4] for row in rows]), np.int64), pages)
    columns["candidate.domain"] = Ragged(np.zeros(n, np.int64), pages)
    columns["candidate.position"] = Ragged(np.zeros(n, np.int32), pages)
    columns["candidate.label"] = columns["candidate.weight"] = Ragged(np.zeros(n, np.float32), pages)
    return SampleBlock.from_columns(sample_schema(CONFIG, 1), columns)


def measure(work: Callable[[Log, Path], int], n_events: int, ruled: bool) -> tuple[float, float]:
    """Return events per second of CPU time and of wall time, on a fresh log."""
    folder = Path(tempfile.mkdtemp(prefix="freshet-joiner-"))
    try:
        with EmbeddedLog(folder / "log") as log:
            fill(log, n_events, ruled)
            wall, cpu = time.perf_counter(), time.process_time()
            done = work(log, folder)
            return done / (time.process_time() - cpu), done / (time.perf_counter() - wall)
    finally:
        shutil.rmtree(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description="Events per second of the joiner.")
    parser.add_argument("--events", type=int, default=200_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rules", action="store_true", help="actions with domains and values, and a config that asks for them")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="little data, to see that it runs")
    given = parser.parse_args()
    if given.quick:
        given.events, given.repeats = 20_000, 1
    works = {"joiner": join, "prototype": prototype} | ({"by rules": join_by_rules} if given.rules else {})
    runs: dict[str, list[tuple[float, float]]] = {name: [] for name in works}
    for work in works.values():
        measure(work, 2_000, given.rules)  # Kernels are compiled once per machine and loaded once per process.
    for _ in range(given.repeats):
        for name, work in works.items():
            runs[name].append(measure(work, given.events, given.rules))
    figures = {
        name: {
            "events_per_cpu_s": statistics.median(cpu for cpu, _ in measured),
            "best_events_per_cpu_s": max(cpu for cpu, _ in measured),
            "events_per_s": statistics.median(wall for _, wall in measured),
        }
        for name, measured in runs.items()
    }
    ratios = [joined[0] / plain[0] for joined, plain in zip(runs["joiner"], runs["prototype"], strict=True)]
    ratio = statistics.median(ratios)
    if given.json:
        print(json.dumps(figures | {"joiner_to_prototype": ratio, "events": given.events, "repeats": given.repeats}))
        return
    print(f"{'':12}{'events / CPU s':>16}{'best':>12}{'events / s':>14}")
    for name, figure in figures.items():
        print(
            f"{name:12}" + "".join(f"{value:>{width},.0f}" for value, width in zip(figure.values(), (16, 12, 14), strict=True))
        )
    print(f"joiner / prototype, CPU, median of {given.repeats}: {ratio:.2f}")


if __name__ == "__main__":
    main()
