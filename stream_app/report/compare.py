"""Several runs side by side: were they scored on the same requests, and how much do their models differ?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from learners.checkpoint import latest, load
from learners.metrics import UserBuckets, paired_intervals
from stream_app.runs import CHECKPOINTS

CHECKED = {
    "generation": "samples of the same generation",
    "evaluation": "same evaluation",
    "from": "same beginning",
    "to": "same end",
    "score_from": "figures from the same time on",
    "scored": "the same requests scored",
}
DRAWS = 1_000

__all__ = ["CHECKED", "compare"]


def compare(runs: Sequence[Mapping[str, Any]], folders: Sequence[Path], draws: int = DRAWS) -> dict[str, Any]:
    """Return what is the same in all runs, and paired intervals where the same requests were scored.

    Args:
        runs: as :func:`stream_app.report.run_data.read_run` returns them.
        folders: of the runs.
        draws: of the bootstrap over users.

    Returns:
        ``{"checks": [{"name", "same", "values"}], "same_requests": bool, "first": "RUN/MODEL", "differences": {"RUN/MODEL":
        {FIGURE: [difference, low, high]}}}``; differences are to the first model of the first run, empty where the requests
        are not the same.
    """
    checks = [
        {"name": text, "same": all(run[key] == runs[0][key] for run in runs), "values": [run[key] for run in runs]}
        for key, text in CHECKED.items()
    ]
    same = bool(checks[-1]["same"])
    first = f"{runs[0]['name']}/{next(iter(runs[0]['models']), '')}"
    differences = _differences(runs, folders, draws) if same else {}
    return {"checks": checks, "same_requests": same, "first": first, "differences": differences}


def _differences(runs: Sequence[Mapping[str, Any]], folders: Sequence[Path], draws: int) -> dict[str, Any]:
    buckets: dict[str, UserBuckets] = {}
    for run, folder in zip(runs, folders, strict=True):
        newest = latest(folder / CHECKPOINTS)
        if newest is None:
            return {}
        arrays = load(newest).arrays
        for model in run["models"]:
            buckets[f"{run['name']}/{model}"] = _buckets(arrays[f"final/{model}"])
    counted = [of_one.sums[:, [6, 7, 8]] for of_one in buckets.values()]
    if not all(np.array_equal(counted[0], each) for each in counted):
        return {}  # A run that goes on: its checkpoint is newer than its page.
    return {
        name: {figure: [value if math.isfinite(value) else None for value in found] for figure, found in figures.items()}
        for name, figures in paired_intervals(buckets, replicates=draws).items()
    }


def _buckets(state: Mapping[str, npt.NDArray[Any]]) -> UserBuckets:
    buckets = UserBuckets()
    prefix = "buckets/"
    buckets.load_state({name.removeprefix(prefix): array for name, array in state.items() if name.startswith(prefix)})
    return buckets
