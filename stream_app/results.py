"""What came out of a run, as one object: printed by ``--json``, written to ``RUN/result.json``, read by the leaderboard."""

from __future__ import annotations

import math
from typing import Any

from learners.checkpoint import digest
from learners.metrics import ALL, Interval, paired_intervals
from stream_app.entrant import Entrant
from stream_app.oracle import BEST
from stream_app.report.leaderboard import DRAWN_HITS, Standing, as_json
from stream_app.report.slices import slices_json
from stream_app.report.snapshot import Reportable

__all__ = ["best_of", "intervals_of", "result_of", "standings_of"]


def standings_of(replay: Reportable, slice_name: str = ALL) -> list[Standing]:
    """Return the leaderboard's rows: figures over what was scored from ``score_from`` on, in the order of the run."""
    standings = []
    for entrant in _models(replay):
        rate = entrant.learned / entrant.seconds if entrant.seconds > 0 else math.nan
        figures = entrant.final.slices[slice_name].figures()
        if slice_name == ALL and entrant.drawn:
            figures = {**figures, DRAWN_HITS: entrant.drawn["hr@3"]}
        standings.append(Standing(entrant.name, figures, rate, digest(entrant.learner.state())))
    return standings


def intervals_of(replay: Reportable) -> dict[str, dict[str, Interval]]:
    """Return each model's difference to the first one, with paired bootstrap intervals by user."""
    models, draws = _models(replay), replay.config.replay.bootstrap
    if len(models) < 2 or not draws:
        return {}
    buckets = {entrant.name: entrant.final.buckets for entrant in models}
    return paired_intervals(buckets, replicates=draws, seed=replay.config.replay.seed)


def best_of(replay: Reportable, slice_name: str = ALL) -> dict[str, float] | None:
    """Return the figures of the true probabilities, where the samples know them."""
    for entrant in replay.entrants:
        if entrant.name == BEST:
            return entrant.final.slices[slice_name].figures()
    return None


def result_of(replay: Reportable) -> dict[str, Any]:
    """Return the run as one object.

    ``{"models": {NAME: {"auc", "gauc", "gauc_user", "log_loss", "ne", "mrr", "impressions", "impressions_per_s", "digest",
    "hr@3_drawn"?, "difference"?}}, "best_auc"?, "best_log_loss"?, "slices"?, "scored", "generation", "evaluation", "requests",
    "seconds"}``.
    ``difference`` is to the first model: figure to ``[difference, low, high]``. ``slices`` has dimensions, ``{"item": {"cold":
    {"models": {NAME: {...}}, "best"?}}}`` with the figures of :data:`learners.metrics.CELL_FIGURES`, and the slices of
    ``replay.slices`` as ``{NAME: {"models", "best_auc"?}}``; one of these takes the place of a dimension of its name. What is
    not defined is null.
    """
    best = best_of(replay)
    result = as_json(standings_of(replay), best=best)
    if best is not None:
        result |= {"best_log_loss": best["log_loss"]}
    for name, intervals in intervals_of(replay).items():
        result["models"][name]["difference"] = {
            figure: [value if math.isfinite(value) else None for value in interval] for figure, interval in intervals.items()
        }
    slices = slices_json(replay.record.cells.cells, {each.name: each.by_slice for each in replay.entrants}, BEST)
    slices |= {name: as_json(standings_of(replay, name), best=best_of(replay, name)) for name in replay.config.replay.slices}
    return (
        result
        | ({"slices": slices} if slices else {})
        | {
            "scored": replay.record.fingerprint.describe(),
            "generation": replay.schema.generation,
            "evaluation": "delayed" if replay.delayed else "immediate",
            "requests": replay.requests,
            "seconds": round(replay.wall_seconds(), 3),
        }
    )


def _models(replay: Reportable) -> list[Entrant]:
    return [entrant for entrant in replay.entrants if entrant.name != BEST]
