"""Figures against brute force and scikit-learn."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss, roc_auc_score

import learners.metrics
from learners.metrics import FIGURES, MetricError, Metrics, as_json, score_rows

Columns = dict[str, Any]  # NumPy arrays, by argument of update
Rows = list[tuple[int, list[tuple[float, int]]]]  # (user, [(score, label)]) per request
SCORES = st.sampled_from([0.0, 1e-9, 0.01, 0.2, 0.2000001, 0.5, 0.9, 1.0])
REQUESTS: st.SearchStrategy[Rows] = st.lists(
    st.tuples(st.integers(-3, 3), st.lists(st.tuples(SCORES, st.integers(0, 1)), min_size=0, max_size=6)), max_size=12
)


def columns(requests: Rows) -> Columns:
    rows = [row for _, candidates in requests for row in candidates]
    return {
        "scores": np.array([score for score, _ in rows], np.float32),
        "labels": np.array([label for _, label in rows], np.float32),
        "offsets": np.cumsum([0, *(len(candidates) for _, candidates in requests)]).astype(np.int64),
        "users": np.array([user for user, _ in requests], np.int64),
        "ts": np.zeros(len(requests), np.int64),
    }


def brute_auc(candidates: list[tuple[float, int]]) -> float:
    positives = [np.float32(s) for s, label in candidates if label]
    negatives = [np.float32(s) for s, label in candidates if not label]
    if not positives or not negatives:
        return math.nan
    wins = sum(float(p > n) + 0.5 * float(p == n) for p in positives for n in negatives)
    return wins / (len(positives) * len(negatives))


def brute_grouped(groups: list[list[tuple[float, int]]]) -> float:
    aucs = [(len(group), brute_auc(group)) for group in groups]
    aucs = [(n, auc) for n, auc in aucs if not math.isnan(auc)]
    return sum(n * auc for n, auc in aucs) / sum(n for n, _ in aucs) if aucs else math.nan


def brute_ranks(candidates: list[tuple[float, int]]) -> list[int]:
    """Rank of the best positive under every order that the scores allow."""
    orders = itertools.permutations(candidates)
    allowed = [o for o in orders if all(np.float32(a[0]) >= np.float32(b[0]) for a, b in itertools.pairwise(o))]
    return [[label for _, label in order].index(1) + 1 for order in allowed]


def brute_ranked(requests: Rows, value: Any) -> float:
    ranked = [c for _, c in requests if len(c) >= 2 and any(label for _, label in c)]
    means = [np.mean([value(rank) for rank in brute_ranks(c)]) for c in ranked]
    return float(np.mean(means)) if means else math.nan


@settings(max_examples=60, deadline=None)
@given(REQUESTS)
def test_ranking_figures_equal_brute_force(requests: Rows) -> None:
    metrics = Metrics()
    metrics.update(**columns(requests))
    figures = metrics.figures()
    by_user: dict[int, list[tuple[float, int]]] = {}
    for user, candidates in requests:
        by_user.setdefault(user, []).extend(candidates)
    expected = {
        "gauc": brute_grouped([c for _, c in requests]),
        "gauc_user": brute_grouped(list(by_user.values())),
        "mrr": brute_ranked(requests, lambda rank: 1 / rank),
        **{f"hr@{k}": brute_ranked(requests, lambda rank, k=k: rank <= k) for k in (1, 3, 5)},
        "impressions": sum(len(c) for _, c in requests),
        "requests": sum(bool(c) for _, c in requests),
        "positives": sum(label for _, c in requests for _, label in c),
    }
    for name, value in expected.items():
        assert figures[name] == pytest.approx(value, nan_ok=True, abs=1e-12), name


@pytest.mark.parametrize(("n", "positives"), [(16, 3), (17, 3), (17, 16), (300, 1), (300, 64), (300, 65), (300, 299)])
def test_auc_of_one_request_is_the_same_to_the_last_bit_however_many_pairs(n: int, positives: int) -> None:
    rng = np.random.default_rng(n + positives)
    scores = np.round(rng.random(n), 1).astype(np.float32)  # many ties
    labels = rng.permutation((np.arange(n) < positives).astype(np.float32))
    higher = scores[labels == 1][:, None] - scores[labels == 0]
    pairs = positives * (n - positives)
    expected = float((higher > 0).sum() + 0.5 * (higher == 0).sum()) / pairs
    metrics = Metrics()
    metrics.update(scores, labels, np.array([0, n]), np.array([7]), np.array([0]))
    assert metrics.figures()["gauc"] == n * expected / n


def large(mean: float, spread: float, n: int = 60_000, seed: int = 0) -> Columns:
    rng = np.random.default_rng(seed)
    scores = (1 / (1 + np.exp(-rng.normal(mean, spread, n)))).astype(np.float32)
    labels = (rng.random(n) < scores).astype(np.float32)
    labels[:2] = 0, 1
    return {
        "scores": scores,
        "labels": labels,
        "offsets": np.arange(0, n + 1, 10),
        "users": rng.integers(1, 500, n // 10),
        "ts": np.sort(rng.integers(0, 10**7, n // 10)),
    }


@pytest.mark.parametrize(("mean", "spread"), [(0, 2), (-3, 1), (-3, 0.1), (-7, 1.5), (-9, 3), (6, 2), (-14, 5)])
def test_auc_and_log_loss_equal_scikit_learn(mean: float, spread: float) -> None:
    data = large(mean, spread)
    metrics = Metrics()
    metrics.update(**data)
    figures = metrics.figures()
    scores, labels = data["scores"], data["labels"]
    assert figures["auc"] == pytest.approx(roc_auc_score(labels, scores), abs=1e-3)
    assert figures["log_loss"] == pytest.approx(log_loss(labels, scores), rel=1e-5)
    rate = labels.mean(dtype=np.float64)
    assert figures["ne"] == pytest.approx(figures["log_loss"] / log_loss(labels, np.full(len(labels), rate)), rel=1e-6)
    assert figures["calibration"] == pytest.approx(scores.mean(dtype=np.float64) / rate, rel=1e-6)


def test_weights_equal_scikit_learn() -> None:
    data = large(-2, 1)
    weights = np.random.default_rng(1).integers(0, 4, len(data["scores"])).astype(np.float32)
    metrics = Metrics()
    metrics.update(**data, weights=weights)
    figures = metrics.figures()
    assert figures["auc"] == pytest.approx(roc_auc_score(data["labels"], data["scores"], sample_weight=weights), abs=1e-3)
    assert figures["log_loss"] == pytest.approx(log_loss(data["labels"], data["scores"], sample_weight=weights), rel=1e-5)
    assert figures["impressions"] == np.count_nonzero(weights)


def test_reliability_bins_hold_every_row() -> None:
    data = large(-2, 1)
    metrics = Metrics()
    metrics.update(**data)
    curve = metrics.reliability()
    assert curve.weight.sum() == len(data["scores"])
    assert (np.diff(curve.predicted) > 0).all()
    assert (curve.predicted * curve.weight).sum() == pytest.approx(data["scores"].sum(dtype=np.float64))
    large_bins = curve.weight > 3000
    np.testing.assert_allclose(curve.observed[large_bins], curve.predicted[large_bins], rtol=0.15)


def test_scoring_with_the_truth_gives_the_best_possible_figures() -> None:
    data = large(-2, 1)
    best, worse = Metrics(), Metrics()
    best.update(**data)
    noise = np.random.default_rng(2).normal(0, 0.5, len(data["scores"]))
    logits = np.log(data["scores"] / (1 - data["scores"])) + noise
    worse.update(**{**data, "scores": (1 / (1 + np.exp(-logits))).astype(np.float32)})
    assert best.figures()["auc"] > worse.figures()["auc"]
    assert best.figures()["log_loss"] < worse.figures()["log_loss"]


def test_a_mask_equals_leaving_requests_out() -> None:
    data = large(-2, 1, n=2000)
    mask = np.random.default_rng(3).random(200) < 0.5
    masked, alone = Metrics(), Metrics()
    masked.update(**data, mask=mask)
    kept = np.repeat(mask, 10)
    alone.update(
        data["scores"][kept], data["labels"][kept], np.arange(mask.sum() + 1) * 10, data["users"][mask], data["ts"][mask]
    )
    assert masked.figures() == alone.figures()


def test_a_model_that_scores_all_alike_gets_no_credit() -> None:
    metrics = Metrics()
    metrics.update(**columns([(1, [(0.5, 1), (0.5, 0), (0.5, 0), (0.5, 0)])]))
    figures = metrics.figures()
    assert figures["auc"] == figures["gauc"] == figures["gauc_user"] == 0.5
    assert figures["hr@1"] == pytest.approx(1 / 4)
    assert figures["mrr"] == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 4) / 4)


def test_what_is_not_defined_is_nan_and_null() -> None:
    metrics = Metrics()
    empty = as_json(metrics.figures())
    assert list(empty) == list(FIGURES)
    assert {name for name, value in empty.items() if value == 0} == {"impressions", "requests", "positives"}
    metrics.update(**columns([(1, [(0.5, 0), (0.2, 0)])]))
    only_negatives = as_json(metrics.figures())
    undefined = {name for name, value in only_negatives.items() if value is None}
    assert undefined == {"auc", "gauc", "gauc_user", "ne", "mrr", "hr@1", "hr@3", "hr@5", "calibration"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": np.array([0.5, np.nan], np.float32)}, "score nan of candidate 1 .* has diverged"),
        ({"scores": np.array([1.5, 0.5], np.float32)}, r"score 1.5 of candidate 0 is no probability in \[0, 1\]"),
        ({"labels": np.array([0, 0.3], np.float32)}, "label 0.3 of candidate 1 is neither 0 nor 1"),
        ({"labels": np.array([0], np.float32)}, "labels has 1, not 2 candidates"),
        ({"offsets": np.array([0, 1])}, "offsets do not rise from 0 to the 2 candidates"),
        ({"offsets": np.array([0, 3, 2])}, "offsets do not rise"),
        ({"users": np.array([1, 2, 3])}, "users has 3, not 1 requests"),
        ({"weights": np.array([1, -1], np.float32)}, "weight -1.0 of candidate 1"),
        ({"weights": np.array([np.inf, 1], np.float32)}, "weight inf of candidate 0"),
        ({"mask": np.array([1])}, "mask is int64, not bool"),
    ],
)
def test_bad_rows_are_refused_and_change_nothing(change: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = {
        "scores": np.array([0.5, 0.2], np.float32),
        "labels": np.array([0, 1], np.float32),
        "offsets": np.array([0, 2]),
    }
    good |= {"users": np.array([1]), "ts": np.array([0])}
    metrics = Metrics()
    with pytest.raises(MetricError, match=message):
        metrics.update(**(good | change))
    assert metrics.figures()["impressions"] == 0
    assert len(score_rows(**good)) == 1


def test_exported_members() -> None:
    assert all(getattr(learners.metrics, name).__doc__ or name.isupper() for name in learners.metrics.__all__)
