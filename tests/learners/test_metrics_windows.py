"""Windows, merging, bounds and exact resume of progressive metrics."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from learners.metrics import ALL, MetricError, MetricOptions, Metrics, MetricSet, UserBuckets

Columns = dict[str, Any]  # NumPy arrays, by argument of update


def stream(n_requests: int, seed: int = 0, span_ms: int = 10_000, users: int = 20) -> Columns:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 6, n_requests)
    n = int(lengths.sum())
    return {
        "scores": rng.random(n).astype(np.float32),
        "labels": (rng.random(n) < 0.3).astype(np.float32),
        "offsets": np.concatenate([[0], np.cumsum(lengths)]),
        "users": rng.integers(1, users, n_requests),
        "ts": np.sort(rng.integers(0, span_ms, n_requests)),
    }


def part(data: Columns, start: int, stop: int) -> Columns:
    return pick(data, np.arange(start, stop))


def pick(data: Columns, requests: npt.NDArray[np.int64]) -> Columns:
    offsets = data["offsets"]
    rows = np.concatenate([np.arange(offsets[r], offsets[r + 1]) for r in requests] or [np.zeros(0, np.int64)]).astype(np.int64)
    lengths = np.diff(offsets)[requests]
    ragged = {"offsets": np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)}
    return ragged | {k: data[k][rows] for k in ("scores", "labels")} | {k: data[k][requests] for k in ("users", "ts")}


def feed(metrics: Metrics, data: Columns, cuts: list[int]) -> None:
    bounds = sorted({0, len(data["users"]), *(cut % (len(data["users"]) + 1) for cut in cuts)})
    for start, stop in itertools.pairwise(bounds):
        metrics.update(**part(data, start, stop))


def close(left: dict[str, float], right: dict[str, float]) -> bool:
    return left == pytest.approx(right, nan_ok=True, rel=1e-12)


@pytest.mark.parametrize("options", [MetricOptions(window_ms=1000), MetricOptions(window_requests=37)])
def test_every_window_equals_metrics_fed_with_it_alone(options: MetricOptions) -> None:
    data = stream(300)
    metrics = Metrics(options)
    feed(metrics, data, [11, 150, 151])
    windows = metrics.window_figures()
    index = np.arange(300) // 37 if options.window_requests else data["ts"] // 1000
    assert len(windows) == len(np.unique(index)) - 1
    for window, value in zip(windows, np.unique(index), strict=False):
        requests = np.flatnonzero(index == value)
        alone = Metrics(MetricOptions(window_ms=10**9))
        alone.update(**pick(data, requests))
        assert close(window.figures, alone.figures())
        assert (window.first_ts, window.last_ts) == (data["ts"][requests[0]], data["ts"][requests[-1]])
    assert metrics.window_figures() == []


def test_users_are_grouped_within_windows() -> None:
    data = stream(300)
    metrics = Metrics(MetricOptions(window_ms=1000))
    feed(metrics, data, [])
    summed = impressions = 0.0
    for window in np.unique(data["ts"] // 1000):
        for user in np.unique(data["users"]):
            rows = pick(data, np.flatnonzero((data["ts"] // 1000 == window) & (data["users"] == user)))
            positive, negative = (rows["scores"][rows["labels"] == label] for label in (1, 0))
            if len(positive) and len(negative):
                auc = np.mean((positive[:, None] > negative) + 0.5 * (positive[:, None] == negative))
                summed, impressions = summed + len(rows["scores"]) * auc, impressions + len(rows["scores"])
    assert metrics.figures()["gauc_user"] == pytest.approx(summed / impressions)


def test_a_straggler_counts_in_the_open_window() -> None:
    metrics = Metrics(MetricOptions(window_ms=1000))
    data = stream(3)
    data["ts"] = np.array([5500, 4200, 6100])
    feed(metrics, data, [1, 2])
    (window,) = metrics.window_figures()
    assert (window.first_ts, window.last_ts, window.figures["requests"]) == (4200, 5500, 2)


@settings(max_examples=25, deadline=None)
@given(
    cuts=st.lists(st.integers(0, 200), max_size=4),
    other_cuts=st.lists(st.integers(0, 200), max_size=4),
    window_requests=st.sampled_from([0, 7]),
    user_rows=st.sampled_from([1, 13, 10_000]),
)
def test_how_a_stream_is_cut_into_updates_changes_no_bit(
    cuts: list[int], other_cuts: list[int], window_requests: int, user_rows: int
) -> None:
    options = MetricOptions(window_ms=900, window_requests=window_requests, user_rows=user_rows)
    left, right = Metrics(options), Metrics(options)
    data = stream(120)
    feed(left, data, cuts)
    feed(right, data, other_cuts)
    assert same_bits(left, right)


def same_bits(left: Metrics, right: Metrics) -> bool:
    mine, other = left.state(), right.state()
    return list(mine) == list(other) and all(mine[k].tobytes() == other[k].tobytes() for k in mine)


@settings(max_examples=25, deadline=None)
@given(cut=st.integers(0, 120), drain=st.booleans(), user_rows=st.sampled_from([9, 10_000]))
def test_resume_gives_the_same_bits(cut: int, drain: bool, user_rows: int) -> None:
    options = MetricOptions(window_ms=900, user_rows=user_rows)
    data = stream(120)
    whole = Metrics(options)
    whole.update(**part(data, 0, cut))
    if drain:
        whole.window_figures()
    resumed = Metrics(options)
    resumed.load_state({name: array.copy() for name, array in whole.state().items()})
    for metrics in (whole, resumed):
        metrics.update(**part(data, cut, 120))
    assert same_bits(whole, resumed)
    assert len(whole.window_figures()) == len(resumed.window_figures())


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 5), split=st.sampled_from(["user", "half", "none"]))
def test_merged_parts_equal_the_whole(seed: int, split: str) -> None:
    data = stream(150, seed)
    options = MetricOptions(window_ms=10_000_000)
    inside = {"user": data["users"] % 2 == 0, "half": np.arange(150) < 75, "none": np.zeros(150, bool)}[split]
    whole, left, right = Metrics(options), Metrics(options), Metrics(options)
    whole.update(**data)
    left.update(**pick(data, np.flatnonzero(inside)))
    right.update(**pick(data, np.flatnonzero(~inside)))
    before = {name: array.copy() for name, array in right.state().items()}
    left.merge(right)
    assert close(left.figures(), whole.figures())
    assert all(array.tobytes() == before[name].tobytes() for name, array in right.state().items())


def test_merging_parts_by_user_over_many_windows_equals_the_whole() -> None:
    data, options = stream(300), MetricOptions(window_ms=1000)
    whole = Metrics(options)
    whole.update(**data)
    merged = Metrics(options)
    for remainder in range(3):
        alone = Metrics(options)
        alone.update(**pick(data, np.flatnonzero(data["users"] % 3 == remainder)))
        merged.merge(alone)
    assert close(merged.figures(), whole.figures())


def test_user_rows_are_bounded() -> None:
    options = MetricOptions(window_ms=10**9, user_rows=50)
    metrics = Metrics(options)
    metrics.update(**stream(500))
    state = metrics.state()
    assert len(state["users.scores"]) <= 50
    assert 0 < metrics.figures()["gauc_user"] < 1
    one = Metrics(options)
    one.update(
        np.full(80, 0.5, np.float32), np.arange(80, dtype=np.float32) % 2, np.array([0, 80]), np.array([1]), np.array([0])
    )
    assert one.figures()["gauc_user"] == 0.5


def test_closed_windows_are_bounded() -> None:
    metrics = Metrics(MetricOptions(window_requests=1, kept_windows=3))
    metrics.update(**stream(20))
    assert len(metrics.window_figures()) == 3


def test_a_state_that_does_not_fit_is_refused_and_changes_nothing() -> None:
    metrics = Metrics(MetricOptions(window_ms=1000))
    metrics.update(**stream(20))
    before = {name: array.copy() for name, array in metrics.state().items()}
    bad = [
        ({"total": before["total"][:-1]}, r"total is float64\[8269\], this version keeps float64\[8270\]"),
        ({"position": before["position"].astype(np.int32)}, "position is int32"),
        ({"users.labels": before["users.labels"][:-1]}, "users.labels"),
        ({"more": before["total"]}, r"unknown \['more'\]"),
    ]
    for change, message in bad:
        with pytest.raises(MetricError, match=message):
            metrics.load_state(before | change)
    with pytest.raises(MetricError, match="missing"):
        metrics.load_state({})
    with pytest.raises(MetricError, match=r"saved with .* = \(1000, .*cannot go on with \(2000"):
        Metrics(MetricOptions(window_ms=2000)).load_state(before)
    with pytest.raises(MetricError, match="different options cannot be merged"):
        metrics.merge(Metrics())
    assert all(array.tobytes() == before[name].tobytes() for name, array in metrics.state().items())


def test_options_are_checked() -> None:
    with pytest.raises(ValueError, match="window_ms must be 1 or more, not 0"):
        MetricOptions(window_ms=0)
    with pytest.raises(ValueError, match="window_requests must be 0"):
        MetricOptions(window_requests=-1)


def test_a_set_holds_slices_and_buckets() -> None:
    data = stream(200)
    even = data["users"] % 2 == 0
    whole, alone, buckets = Metrics(), Metrics(), UserBuckets()
    whole.update(**data)
    alone.update(**data, mask=even)
    buckets.update(**data)
    metrics = MetricSet(("even",))
    metrics.update(**data, slices={"even": even})
    assert metrics.figures() == whole.figures()
    assert same_bits(metrics.slices["even"], alone)
    assert np.array_equal(metrics.buckets.histogram, buckets.histogram)

    resumed = MetricSet(("even",))
    resumed.load_state(metrics.state())
    assert same_bits(resumed.slices["even"], alone)
    assert same_bits(resumed.slices[ALL], whole)
    masked = MetricSet(("even",))
    masked.update(**data, mask=~even, slices={"even": even})
    assert masked.slices["even"].figures()["requests"] == 0
    assert math.isnan(masked.slices["even"].figures()["auc"])


def test_a_set_refuses_other_slices() -> None:
    with pytest.raises(MetricError, match="names must be unique"):
        MetricSet(("all",))
    metrics = MetricSet(("even",))
    with pytest.raises(MetricError, match=r"slices given are \['all'\], this set has \['all', 'even'\]"):
        metrics.update(**stream(3))
    with pytest.raises(MetricError, match="use the same slices"):
        MetricSet().load_state(metrics.state())


@pytest.mark.parametrize("options", [MetricOptions(window_ms=1000), MetricOptions(window_requests=37, user_rows=50)])
def test_metrics_that_follow_others_are_those_that_count_the_same(options: MetricOptions) -> None:
    data = stream(400)
    live, follower, counting = Metrics(options), Metrics(options), Metrics(options)
    assert follower.counted_alike(live)
    for start, stop in itertools.pairwise([0, 60, 61, 180, 300]):
        live.update(**part(data, start, stop))
        live.window_figures()
        counting.update(**part(data, start, stop))
        counting.window_figures()
        assert not follower.counted_alike(live)
        follower.follow(live)
        assert follower.counted_alike(live)
        assert state_bytes(follower) == state_bytes(counting)
    follower.update(**part(data, 300, 350))  # From here on it counts by itself, and what it followed does not change.
    counting.update(**part(data, 300, 350))
    live.update(**part(data, 350, 400))
    assert state_bytes(follower) == state_bytes(counting)
    alone = Metrics(options)
    alone.update(**pick(data, np.concatenate([np.arange(300), np.arange(350, 400)])))
    assert state_bytes(live) == state_bytes(alone)


def state_bytes(metrics: Metrics) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in metrics.state().items() if name != "closed"}
