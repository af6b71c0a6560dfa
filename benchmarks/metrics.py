"""Cost and error of progressive metrics, beside scikit-learn's exact ``roc_auc_score`` and ``log_loss`` on the same rows.

Run: ``python benchmarks/metrics.py [--requests N] [--batch N] [--repeats N] [--json]``. Costs are the best of the repeats,
which take turns; read the ratios. scikit-learn sees all rows at once and tells two figures; the metrics see a batch at a time
and tell all of theirs.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from sklearn.metrics import log_loss, roc_auc_score

from learners.metrics import Metrics, MetricSet, UserBuckets, paired_intervals, score_rows
from learners.metrics.figures import Sums
from learners.metrics.progressive import MetricOptions

CANDIDATES = 10


class Stream(NamedTuple):
    """Requests of ten candidates whose labels follow the scores."""

    scores: npt.NDArray[np.float32]
    labels: npt.NDArray[np.float32]
    offsets: npt.NDArray[np.int64]
    users: npt.NDArray[np.int64]
    ts: npt.NDArray[np.int64]


def stream(n_requests: int, mean: float = -2.5, spread: float = 1.0) -> Stream:
    """Return requests of users with a few requests each, three a second."""
    draw = np.random.default_rng(0)
    n = n_requests * CANDIDATES
    scores = (1 / (1 + np.exp(-draw.normal(mean, spread, n)))).astype(np.float32)
    labels = (draw.random(n) < scores).astype(np.float32)
    users = draw.integers(1, n_requests // 4 + 2, n_requests)
    return Stream(scores, labels, np.arange(0, n + 1, CANDIDATES), users, np.arange(n_requests) * 333)


def batches(data: Stream, size: int) -> Iterator[Stream]:
    """Cut a stream as a learner does."""
    for at in range(0, len(data.users), size):
        requests, rows = slice(at, at + size), slice(at * CANDIDATES, (at + size) * CANDIDATES)
        scores = data.scores[rows]
        offsets = np.arange(0, len(scores) + 1, CANDIDATES)
        yield Stream(scores, data.labels[rows], offsets, data.users[requests], data.ts[requests])


def auc_and_log_loss(data: Stream, size: int) -> None:
    """Score bins and losses only."""
    sums = Sums()
    for batch in batches(data, size):
        rows = score_rows(*batch)
        sums.add(rows, 0, len(rows))
    sums.figures()


def all_figures(data: Stream, size: int) -> None:
    """Every figure, per hour and over all."""
    metrics = Metrics()
    for batch in batches(data, size):
        metrics.update(*batch)
    metrics.figures()


def all_and_buckets(data: Stream, size: int) -> None:
    """Every figure and the sums of the bootstrap."""
    metrics = MetricSet(options=MetricOptions())
    for batch in batches(data, size):
        metrics.update(*batch)
    metrics.figures()


def exact(data: Stream, size: int) -> None:
    """scikit-learn on all rows at once."""
    roc_auc_score(data.labels, data.scores)
    log_loss(data.labels, data.scores)


def measure(n_requests: int, size: int, repeats: int) -> dict[str, float]:
    """Return ns per impression, ratios to scikit-learn, and errors of AUC."""
    data = stream(n_requests)
    ways: list[Callable[[Stream, int], None]] = [auc_and_log_loss, all_figures, all_and_buckets, exact]
    for way in ways:
        way(stream(200), size)  # compiles
    seconds = dict.fromkeys((way.__name__ for way in ways), float("inf"))
    for _ in range(repeats):
        for way in ways:
            began = time.perf_counter()
            way(data, size)
            seconds[way.__name__] = min(seconds[way.__name__], time.perf_counter() - began)
    result = {f"{name}_ns_per_impression": 1e9 * took / len(data.scores) for name, took in seconds.items()}
    result |= {f"exact_over_{way.__name__}": seconds["exact"] / seconds[way.__name__] for way in ways[:-1]}
    return result | {"bootstrap_of_two_s": _bootstrap_seconds(data)} | _errors(n_requests)


def _bootstrap_seconds(data: Stream) -> float:
    buckets = UserBuckets()
    buckets.update(*data)
    began = time.perf_counter()
    paired_intervals({"first": buckets, "second": buckets})
    return time.perf_counter() - began


def _errors(n_requests: int) -> dict[str, float]:
    errors = {}
    for mean, spread in ((0.0, 2.0), (-2.5, 1.0), (-2.5, 0.1), (-7.0, 1.5), (-9.0, 3.0)):
        data = stream(n_requests, mean, spread)
        metrics, buckets = Metrics(), UserBuckets()
        metrics.update(*data)
        buckets.update(*data)
        truth = float(roc_auc_score(data.labels, data.scores))
        errors[f"auc_error_logits_{mean}_spread_{spread}"] = abs(metrics.figures()["auc"] - truth)
        whole = buckets.replicates(np.ones((1, len(buckets.sums)), np.int64))
        errors[f"auc_error_of_buckets_logits_{mean}_spread_{spread}"] = abs(float(whole["auc"][0]) - truth)
    return errors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--batch", type=int, default=1_000, help="requests per update")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="little data, to see that it runs")
    given = parser.parse_args()
    if given.quick:
        given.requests, given.repeats = 5_000, 1
    result = measure(given.requests, given.batch, given.repeats)
    if given.json:
        print(json.dumps(result))
        return
    for name, value in result.items():
        print(f"{name:48} {value:.3g}" if value < 1 else f"{name:48} {value:.1f}")


if __name__ == "__main__":
    main()
