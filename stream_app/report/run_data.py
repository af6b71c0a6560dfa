"""What a run's folder tells the page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from stream_app.report.names import named
from stream_app.report.series import read_lines, series
from stream_app.runs import CONFIG, METRICS, RunError, is_run

MOMENTS, SNAPSHOT = "moments.jsonl", "report.json"
"""When there were checkpoints and restarts; what :mod:`stream_app.report.snapshot` took."""
MOST_MOMENTS = 200

__all__ = ["MOMENTS", "SNAPSHOT", "read_run"]


def read_run(folder: Path) -> dict[str, Any]:
    """Return one run as the page wants it: its snapshot, with ``name``, ``series``, ``moments`` and ``config``.

    Raises:
        RunError: there is no run, or it was never written down.
    """
    if not is_run(folder):
        raise RunError(f"{str(folder)!r} is no folder of a run: give one that `freshet replay --run` or `freshet train` wrote")
    if not (folder / SNAPSHOT).is_file():
        raise RunError(
            f"the run in {str(folder)!r} has no {SNAPSHOT}: it got to no checkpoint yet, or an older Freshet wrote it. "
            "Go on with it (--resume), or replay again"
        )
    found: dict[str, Any] = named(msgspec.json.decode((folder / SNAPSHOT).read_bytes()))
    name = folder.resolve().name
    moments = _thinned(read_lines(folder / MOMENTS))
    config = (folder / CONFIG).read_text()
    return found | {"name": name, "series": series(read_lines(folder / METRICS)), "moments": moments, "config": config}


def _thinned(moments: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Keep every start and restart, and so many checkpoints that all fit."""
    others = [each for each in moments if each["kind"] != "checkpoint"]
    checkpoints = [each for each in moments if each["kind"] == "checkpoint"]
    step = -(-len(checkpoints) // MOST_MOMENTS) or 1
    return sorted(others[-MOST_MOMENTS:] + checkpoints[::-step], key=lambda each: each["requests"])
