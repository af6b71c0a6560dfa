"""The bucket bootstrap against the plain bootstrap over users."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from learners.metrics import BUCKETS, DRAWN_FIGURES, MetricError, Metrics, UserBuckets, paired_intervals
from learners.metrics.bootstrap import bucket_draws, bucket_of

Columns = dict[str, Any]  # NumPy arrays, by argument of update


def two_models(seed: int, users: int = 1500, edge: float = 0.3) -> tuple[Columns, Columns]:
    """Two models that see the truth through noise; users differ in rate, in number of requests and in noise."""
    rng = np.random.default_rng(seed)
    of_request = np.repeat(np.arange(1, users + 1), rng.integers(1, 6, users))
    n = 4 * len(of_request)
    user = np.repeat(of_request, 4)
    logits = rng.normal(-1.5, 1, n) + rng.normal(0, 0.7, users + 1)[user]
    labels = (rng.random(n) < 1 / (1 + np.exp(-logits))).astype(np.float32)
    shared = rng.normal(0, 1, n)
    per_user = rng.normal(0, 0.5, users + 1)[user]
    base: Columns = {
        "labels": labels,
        "offsets": np.arange(len(of_request) + 1) * 4,
        "users": of_request,
        "ts": np.arange(len(of_request)),
    }
    noisy = [logits + (1 + extra) * shared + extra * per_user + rng.normal(0, 0.5, n) for extra in (0.0, edge)]
    first, second = (base | {"scores": (1 / (1 + np.exp(-z))).astype(np.float32)} for z in noisy)
    return first, second


def buckets(data: Columns) -> UserBuckets:
    made = UserBuckets()
    made.update(**data)
    return made


def test_identical_models_differ_by_nothing() -> None:
    first, _ = two_models(0, users=300)
    intervals = paired_intervals({"a": buckets(first), "b": buckets(first)}, replicates=50)["b"]
    assert set(intervals) == set(DRAWN_FIGURES)
    assert all(tuple(interval) == (0.0, 0.0, 0.0) for interval in intervals.values())


def test_differences_are_those_of_the_metrics() -> None:
    first, second = two_models(0)
    left, right = Metrics(), Metrics()
    left.update(**first)
    right.update(**second)
    intervals = paired_intervals({"a": buckets(first), "b": buckets(second)}, replicates=50)["b"]
    for figure, tolerance in {"auc": 2e-4, "log_loss": 1e-12, "gauc": 1e-12, "mrr": 1e-12}.items():
        expected = right.figures()[figure] - left.figures()[figure]
        assert intervals[figure].difference == pytest.approx(expected, abs=tolerance)
        assert intervals[figure].low < intervals[figure].difference < intervals[figure].high


def test_interval_equals_a_plain_bootstrap_over_users() -> None:
    first, second = two_models(1)
    interval = paired_intervals({"a": buckets(first), "b": buckets(second)})["b"]["auc"]
    rng = np.random.default_rng(5)
    users = np.repeat(first["users"], 4)
    differences = []
    for _ in range(200):
        weights = np.bincount(rng.integers(1, 1501, 1500), minlength=1501)[users]
        kept = weights > 0
        aucs = [
            roc_auc_score(data["labels"][kept], data["scores"][kept], sample_weight=weights[kept]) for data in (first, second)
        ]
        differences.append(aucs[1] - aucs[0])
    low, high = np.quantile(differences, [0.025, 0.975])
    assert interval.high - interval.low == pytest.approx(high - low, rel=0.25)
    assert interval.low == pytest.approx(low, abs=0.25 * (high - low))
    assert interval.high == pytest.approx(high, abs=0.25 * (high - low))


def test_intervals_cover_the_true_difference_as_often_as_they_say() -> None:
    worlds = [two_models(seed, users=250) for seed in range(100)]
    intervals = [paired_intervals({"a": buckets(a), "b": buckets(b)}, replicates=100)["b"] for a, b in worlds]
    for figure in DRAWN_FIGURES:
        truth = np.mean([interval[figure].difference for interval in intervals])
        covered = np.mean([interval[figure].low <= truth <= interval[figure].high for interval in intervals])
        assert 0.87 <= covered <= 1.0, figure  # 95% of 100 worlds, four standard errors


def test_merged_and_restored_buckets_equal_the_whole() -> None:
    first, _ = two_models(2, users=200)
    whole, merged = buckets(first), UserBuckets()
    for remainder in range(2):
        alone = UserBuckets()
        alone.update(**first, mask=first["users"] % 2 == remainder)
        merged.merge(alone)
    np.testing.assert_array_equal(merged.histogram, whole.histogram)
    np.testing.assert_allclose(merged.sums, whole.sums)
    restored = UserBuckets()
    restored.load_state(whole.state())
    restored.histogram[0, 0, 0] += 1
    assert restored.histogram[0, 0, 0] == whole.histogram[0, 0, 0] + 1  # a copy, not the caller's array
    np.testing.assert_array_equal(restored.sums, whole.sums)
    with pytest.raises(MetricError, match="bootstrap state does not fit"):
        restored.load_state({"histogram": whole.histogram})


def test_draws_are_a_function_of_the_seed_alone() -> None:
    draws = bucket_draws(100, seed=7)
    assert draws.shape == (100, BUCKETS)
    assert (draws.sum(axis=1) == BUCKETS).all()
    np.testing.assert_array_equal(draws, bucket_draws(100, seed=7))
    np.testing.assert_array_equal(draws[:10], bucket_draws(10, seed=7))
    assert (draws != bucket_draws(100, seed=8)).any()


def test_users_spread_over_the_buckets() -> None:
    counts = np.bincount(bucket_of(np.arange(-50_000, 50_000)), minlength=BUCKETS)
    assert counts.min() > 250
    assert counts.max() < 550


def test_models_of_different_requests_are_refused() -> None:
    first, second = two_models(3, users=50)
    fewer = UserBuckets()
    fewer.update(**second, mask=second["users"] != 7)
    with pytest.raises(MetricError, match=r"egin and din were not scored on the same requests: .* needs the same ones"):
        paired_intervals({"egin": buckets(first), "din": fewer})


def test_without_a_positive_there_is_no_interval() -> None:
    first, _ = two_models(4, users=20)
    first["labels"] = np.zeros_like(first["labels"])
    intervals = paired_intervals({"a": buckets(first), "b": buckets(first)}, replicates=20)["b"]
    assert np.isnan(intervals["auc"]).all()
    assert tuple(intervals["log_loss"]) == (0.0, 0.0, 0.0)
