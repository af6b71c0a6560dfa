"""What ``replay`` and ``demo`` print at the end."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

from stream_app.launch import Launched
from stream_app.replay import Replay
from stream_app.report.leaderboard import leaderboard
from stream_app.report.names import DIGITS
from stream_app.report.writer import PageWriter
from stream_app.results import best_of, intervals_of, result_of, standings_of
from stream_app.runs import RESULT, write_whole


def print_result(replay: Replay, run: Path | None, *, as_json: bool, page: PageWriter | None = None) -> None:
    """Print the leaderboard, or one JSON object; keep the object in the run's folder, and the page that shows it."""
    result = result_of(replay)
    if run is not None:
        write_whole(run / RESULT, msgspec.json.format(msgspec.json.encode(result), indent=2) + b"\n")
    if page is not None:
        page.finished(replay, result)
    if as_json:
        print(msgspec.json.encode(result).decode())
        return
    console = Console()
    title = f"{replay.requests:,} requests learned, scored {result['evaluation']}"
    leaderboard(console, standings_of(replay), intervals_of(replay), best=best_of(replay), title=title)
    for name in replay.config.replay.slices:
        leaderboard(console, standings_of(replay, name), {}, best=best_of(replay, name), title=f"only {name}")
    for name in replay.config.replay.slice_by:
        _print_slices(console, name, result["slices"].get(name, {}), {} if page is None else page.names)


def _print_slices(console: Console, dimension: str, slices: dict[str, Any], names: dict[str, str]) -> None:
    """Print the AUC of each model per value."""
    table = Table(title=f"AUC by {dimension}", title_justify="left", box=None, pad_edge=False)
    models = next(iter(slices.values()))["models"] if slices else {}
    for title in (dimension, "impressions", *models):
        table.add_column(title, justify="left" if title == dimension else "right")
    for value, found in slices.items():
        figures = list(found["models"].values())
        aucs = ("-" if each["auc"] is None else f"{each['auc']:.4f}" for each in figures)
        table.add_row(names.get(value[:DIGITS], value), f"{figures[0]['impressions']:,.0f}", *aucs)
    console.print(table)


def print_profile(launched: Launched) -> None:
    """Print where the time went, to stderr: the reading thread runs beside the others, so parts may overlap."""
    table = Table(title=f"{launched.profile.elapsed():.1f} s", title_justify="left", box=None, pad_edge=False)
    for title in ("stage", "seconds", "calls", "ms per call"):
        table.add_column(title, justify="left" if title == "stage" else "right")
    for name, seconds, calls in launched.profile.rows():
        table.add_row(name, f"{seconds:.2f}", f"{calls:,}", f"{1000 * seconds / calls:.3f}")
    Console(file=sys.stderr).print(table)
