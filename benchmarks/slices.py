"""What figures by slice cost per impression, beside all other metrics and beside the models themselves.

Run: ``python benchmarks/slices.py [--requests N] [--batch N] [--repeats N] [--json]``. CPU time, the best of the repeats, which
take turns; read the ratios. A log with positions, one domain and queries; one feature of 30 values.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable

import numpy as np

from learners.metrics import Breakdown, MetricOptions, Metrics, MetricSet, SliceCells, SliceOptions, score_rows
from learners.metrics.fingerprint import Fingerprint
from learners.samples import Ragged, SampleBlock, SampleSchema
from stream_app.score_record import ScoreRecord

CANDIDATES, HISTORY = 10, 12
SCHEMA = SampleSchema(generation="benchmark", has_query=True, request_ids=("device",))


def block(draw: np.random.Generator, n: int, first: int) -> SampleBlock:
    """Return requests of ten candidates out of 100,000 items, the popular ones shown most."""
    items = (draw.pareto(1.0, n * CANDIDATES) * 100).astype(np.int64) % 100_000 + 1
    ends = np.arange(n + 1)
    none = Ragged(np.zeros(0, np.int64), np.zeros(n + 1, np.int64))
    candidates = ends * CANDIDATES
    ids = np.arange(first, first + n)
    history = Ragged(draw.integers(1, 100_000, n * HISTORY), ends * HISTORY)
    return SampleBlock.from_columns(
        SCHEMA,
        {
            **{name: np.zeros(n, np.int64) for name in ("due", "domain")},
            "partition": np.zeros(n, np.int32),
            "seq": ids,
            "request": ids + 1,
            "ts": ids * 333,
            "user": draw.integers(1, 10_000, n),
            "query": draw.integers(1, 5_000, n),
            "query_category": np.zeros((n, 4), np.int64),
            "request_feature.device": draw.integers(1, 31, n),
            **{f"click.{part}": history for part in ("item", "category", "ts")},
            "click.fresh": np.zeros(n, np.int32),
            "query.id": none,
            "query.ts": none,
            "query.fresh": np.zeros(n, np.int32),
            "query.category": Ragged(np.zeros((0, 4), np.int64), none.offsets),
            "candidate.item": Ragged(items, candidates),
            "candidate.category": Ragged(items % 50 + 1, candidates),
            "candidate.domain": Ragged(np.ones(n * CANDIDATES, np.int64), candidates),
            "candidate.position": Ragged(np.tile(np.arange(CANDIDATES, dtype=np.int32), n), candidates),
            "candidate.label": Ragged((draw.random(n * CANDIDATES) < 0.1).astype(np.float32), candidates),
            "candidate.weight": Ragged(np.ones(n * CANDIDATES, np.float32), candidates),
        },
    )


def measure(n_requests: int, size: int, repeats: int) -> dict[str, float]:
    """Return ns of CPU time per impression."""
    draw = np.random.default_rng(0)
    blocks = [block(draw, size, first) for first in range(0, n_requests, size)]
    scores = [draw.random(each.n_candidates, np.float32) for each in blocks]
    labels = [each.ragged("candidate.label") for each in blocks]
    users = [(each.column("user"), each.column("ts")) for each in blocks]
    rows = [score_rows(s, *of, *who) for s, of, who in zip(scores, labels, users, strict=True)]
    options = SliceOptions(features=("device",))

    def all_metrics() -> None:
        """Everything that a model's scores were counted in before slices."""
        final, live = MetricSet(options=MetricOptions()), Metrics()
        for s, of, who in zip(scores, labels, users, strict=True):
            counted = score_rows(s, *of, *who)
            live.add(counted)
            final.slices["all"].add(counted)
            final.buckets.add(counted)

    def slices_per_model() -> None:
        cells = SliceCells(SCHEMA, options)
        breakdown = Breakdown()
        for assigned, counted in zip(all_cells, rows, strict=True):
            breakdown.add(counted, assigned)
        breakdown.figures(*range(len(cells.cells)))

    def cells_once() -> None:
        cells = SliceCells(SCHEMA, options)
        for each in blocks:
            cells.assign(each)

    def record_once() -> None:
        """Cells, fingerprint, examples, items."""
        record = ScoreRecord(SCHEMA, options)
        for each in blocks:
            record.observe(each, None)

    def fingerprint_once() -> None:
        fingerprint = Fingerprint()
        for each in blocks:
            fingerprint.add(each)

    teller = SliceCells(SCHEMA, options)
    all_cells = [teller.assign(each) for each in blocks]
    ways: list[Callable[[], None]] = [all_metrics, slices_per_model, cells_once, fingerprint_once, record_once]
    for way in ways:
        way()  # compiles
    seconds = dict.fromkeys((way.__name__ for way in ways), float("inf"))
    for _ in range(repeats):
        for way in ways:
            began = time.process_time()
            way()
            seconds[way.__name__] = min(seconds[way.__name__], time.process_time() - began)
    return {f"{name}_ns": 1e9 * took / (len(blocks) * size * CANDIDATES) for name, took in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=40_000)
    parser.add_argument("--batch", type=int, default=100, help="requests per block")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="little data, to see that it runs")
    given = parser.parse_args()
    if given.quick:
        given.requests, given.repeats = 2_000, 1
    found = measure(given.requests, given.batch, given.repeats)
    if given.json:
        print(json.dumps(found))
        return
    for name, value in found.items():
        print(f"{name:24} {value:8.1f} per impression")


if __name__ == "__main__":
    main()
