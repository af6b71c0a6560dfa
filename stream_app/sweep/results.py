"""What came out of a sweep: per variant the mean over seeds, their spread, and the difference to the first variant."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

from learners.checkpoint import latest, load
from learners.metrics import DRAWN_FIGURES, MetricError, UserBuckets, paired_intervals
from learners.metrics.bootstrap import bucket_draws
from stream_app.runs import CHECKPOINTS, RESULT

from .running import Outcome, run_folder
from .spec import PlannedRun, Variant

__all__ = ["FIGURES", "saved_buckets", "sweep_results", "table"]

FIGURES: Final = ("auc", "gauc", "log_loss", "mrr", "impressions_per_s")
_SUFFIX: Final = "buckets/"
_LEVEL: Final = 0.95
Floats = npt.NDArray[np.float64]


def sweep_results(outcomes: Sequence[Outcome], runs: Sequence[PlannedRun], out: Path) -> dict[str, Any]:
    """Return the sweep as one object.

    ``{"first": NAME, "variants": {NAME: {"model", "seeds", "figures": {FIGURE: {"mean", "spread"}}, "difference"?,
    "not_compared"?, "failed"?}}}``. A variant stands for the first model of its runs. ``spread`` is the standard deviation over
    seeds, null for one seed. ``difference`` is FIGURE to ``[difference, low, high]``: the mean over the seeds that both have,
    with the interval of a bootstrap over users that draws the same users for all of them.
    """
    ended = {outcome.run.key: outcome for outcome in outcomes}
    variants: dict[str, Variant] = {run.variant.name: run.variant for run in runs}
    first = next(iter(variants))
    found: dict[str, Any] = {}
    buckets: dict[str, dict[int, UserBuckets]] = {}
    replicates = runs[0].config.replay.bootstrap
    for name in variants:
        mine = [run for run in runs if run.variant.name == name]
        done = [run for run in mine if run.key in ended and ended[run.key].error is None]
        entry: dict[str, Any] = {"model": mine[0].config.replay.models[0], "seeds": [run.seed for run in done]}
        results = [_result(out, run) for run in done]
        entry["figures"] = {figure: _spread([each[figure] for each in results]) for figure in FIGURES}
        failed = {run.seed: ended[run.key].error for run in mine if run.key in ended and ended[run.key].error is not None}
        if failed:
            entry["failed"] = {str(seed): f"{error} (logs/{name_of(mine, seed)}.txt)" for seed, error in failed.items()}
        if replicates:
            buckets[name] = {run.seed: saved_buckets(out, run) for run in done}
            if name != first:
                entry |= _compared(buckets[first], buckets[name], replicates)
        found[name] = entry
    return {"first": first, "variants": found}


def name_of(runs: Sequence[PlannedRun], seed: int) -> str:
    """Return the name of the files of the run with a seed."""
    return next(run.key for run in runs if run.seed == seed)


def _result(out: Path, run: PlannedRun) -> Mapping[str, Any]:
    result = msgspec.json.decode((run_folder(out, run) / RESULT).read_bytes())
    figures: Mapping[str, Any] = result["models"][run.config.replay.models[0]]
    return figures


def _spread(values: Sequence[float | None]) -> dict[str, float | None]:
    known = [value for value in values if value is not None]
    return {
        "mean": statistics.mean(known) if known else None,
        "spread": statistics.stdev(known) if len(known) > 1 else None,
    }


def saved_buckets(out: Path, run: PlannedRun) -> UserBuckets:
    """Return the sums per bucket of users that the run's last checkpoint holds."""
    path = latest(run_folder(out, run) / CHECKPOINTS)
    assert path is not None, "a run that is done has a checkpoint"
    state = load(path).arrays[f"final/{run.config.replay.models[0]}"]
    buckets = UserBuckets()
    buckets.load_state({name.removeprefix(_SUFFIX): array for name, array in state.items() if name.startswith(_SUFFIX)})
    return buckets


def _compared(first: Mapping[int, UserBuckets], other: Mapping[int, UserBuckets], replicates: int) -> dict[str, Any]:
    seeds = sorted(set(first) & set(other))
    if not seeds:
        return {}
    try:
        for seed in seeds:
            paired_intervals({"first": first[seed], "other": other[seed]}, replicates=1)  # says whether the rows are the same
    except MetricError as error:
        return {"not_compared": str(error)}
    draws, once = bucket_draws(replicates, 0), np.ones((1, len(first[seeds[0]].sums)), np.int64)
    sampled, whole = (_mean_difference(first, other, seeds, each) for each in (draws, once))
    return {"difference": {figure: _interval(float(whole[figure][0]), sampled[figure]) for figure in DRAWN_FIGURES}}


def _mean_difference(
    first: Mapping[int, UserBuckets], other: Mapping[int, UserBuckets], seeds: Sequence[int], draws: npt.NDArray[np.int64]
) -> dict[str, Floats]:
    pairs = [(first[seed].replicates(draws), other[seed].replicates(draws)) for seed in seeds]
    return {figure: np.mean([theirs[figure] - ours[figure] for ours, theirs in pairs], axis=0) for figure in DRAWN_FIGURES}


def _interval(difference: float, sampled: Floats) -> list[float | None]:
    known = sampled[~np.isnan(sampled)]
    low, high = np.quantile(known, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2]) if len(known) else (math.nan, math.nan)
    return [float(value) if math.isfinite(value) else None for value in (difference, low, high)]


def table(results: Mapping[str, Any]) -> list[list[str]]:
    """Return the rows of a table, its titles first."""
    titles = ["variant", "AUC", f"vs {results['first']}", "gAUC", "log loss", "MRR", "impr./s", "seeds"]
    rows = [titles]
    for name, entry in results["variants"].items():
        auc, gauc, loss, mrr, rate = (entry["figures"][figure] for figure in FIGURES)
        against = entry.get("difference", {}).get("auc")
        shown = "" if against is None or None in against else "{:+.4f} [{:+.4f}, {:+.4f}]".format(*against).replace("0.", ".")
        if "not_compared" in entry:
            shown = "other samples"
        speed = "-" if rate["mean"] is None else f"{rate['mean']:,.0f}"
        n_seeds = f"{len(entry['seeds'])}" + (f", {len(entry['failed'])} failed" if "failed" in entry else "")
        rows.append([name, _cell(auc), shown, _cell(gauc), _cell(loss), _cell(mrr), speed, n_seeds])
    return rows


def _cell(figure: Mapping[str, float | None]) -> str:
    if figure["mean"] is None:
        return "-"
    spread = "" if figure["spread"] is None else f" ±{figure['spread']:.4f}"
    return f"{figure['mean']:.4f}{spread}"
