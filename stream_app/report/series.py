"""The windows of a run's figures as series of a few hundred points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

MOST_POINTS = 240
MOST_BYTES = 32 << 20
"""Of a file of lines: some twenty thousand windows. A trainer reads it while it trains, and may go on for years."""
FIGURES = ("auc", "gauc", "log_loss", "ne", "calibration", "impressions")

__all__ = ["FIGURES", "MOST_POINTS", "read_lines", "series"]


def read_lines(path: Path, most_bytes: int = MOST_BYTES) -> list[dict[str, Any]]:
    """Return the whole lines of a file of JSON lines, none where it is not there; a half-written last one is left out.

    Args:
        path: of the file.
        most_bytes: of a longer file only the lines within its last so many bytes.
    """
    if not path.is_file():
        return []
    with path.open("rb") as file:
        skipped = max(0, path.stat().st_size - most_bytes)
        file.seek(max(0, skipped - 1))
        if skipped:
            file.readline()  # To the beginning of a line, unless that is where the last bytes begin.
        text = file.read(most_bytes)
    return [msgspec.json.decode(line) for line in text[: text.rfind(b"\n") + 1].splitlines()]


def series(lines: Sequence[Mapping[str, Any]], most: int = MOST_POINTS) -> dict[str, dict[str, list[Any]]]:
    """Return ``{MODEL: {"ts": [...], "from": [...], FIGURE or STAT: [...]}}``, at most ``most`` points each.

    Where there are more windows, neighbours become one point: means weighed by impressions, of what is not null.

    Args:
        lines: windows as in ``metrics.jsonl``, in their order.
        most: points of one model.
    """
    models: dict[str, list[Mapping[str, Any]]] = {}
    for line in lines:
        if "model" in line and "figures" in line:
            models.setdefault(line["model"], []).append(line)
    return {name: _points(windows, most) for name, windows in models.items()}


def _points(windows: Sequence[Mapping[str, Any]], most: int) -> dict[str, list[Any]]:
    size = -(-len(windows) // most)
    groups = [windows[at : at + size] for at in range(0, len(windows), size)]
    stats = sorted({name for window in windows for name in window.get("stats", {})})
    points: dict[str, list[Any]] = {
        "from": [group[0]["first_ts"] for group in groups],
        "ts": [group[-1]["last_ts"] for group in groups],
        "impressions": [sum(window["figures"]["impressions"] for window in group) for group in groups],
        "impressions_per_s": [_mean(group, lambda window: window.get("impressions_per_s")) for group in groups],
    }
    for name in FIGURES[:-1]:
        points[name] = [_mean(group, lambda window, name=name: window["figures"].get(name)) for group in groups]
    for name in stats:
        points[name] = [_mean(group, lambda window, name=name: window.get("stats", {}).get(name)) for group in groups]
    return points


def _mean(group: Sequence[Mapping[str, Any]], value_of: Any) -> float | None:
    known = [(value_of(window), max(1.0, window["figures"]["impressions"])) for window in group]
    known = [(value, weight) for value, weight in known if value is not None]
    if not known:
        return None
    mean = sum(value * weight for value, weight in known) / sum(weight for _, weight in known)
    return float(f"{mean:.5g}")
