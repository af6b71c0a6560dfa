"""The leaderboard of a run: for people a table, for programs one JSON object."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from learners.metrics import Interval

BEST = "best possible"
_DIFFERENCE = 1
DRAWN_HITS = "hr@3_drawn"
"""Figure of a standing that is there where positives were ranked among drawn negatives (``replay.hr_negatives``)."""
JSON_FIGURES = ("auc", "gauc", "gauc_user", "log_loss", "ne", "mrr")


class Standing(NamedTuple):
    """What one model reached."""

    name: str
    figures: Mapping[str, float]
    """As ``Metrics.figures`` returns them; NaN where one is not defined."""
    impressions_per_s: float
    digest: str
    """Of the learned state."""


class _Column(NamedTuple):
    title: str
    importance: int
    """The highest number is left out first where the table is too wide."""
    cell: Callable[[Standing], str | Text]


def leaderboard(
    console: Console,
    standings: Sequence[Standing],
    intervals: Mapping[str, Mapping[str, Interval]],
    *,
    best: Mapping[str, float] | None = None,
    title: str | None = None,
) -> dict[str, Any]:
    """Print the table and return the JSON object of :func:`as_json`.

    Args:
        console: where the table goes.
        standings: models in the order of the run; the others are compared with the first.
        intervals: per model but the first and per figure, as ``paired_intervals`` returns them; empty leaves the column out.
        best: figures of scoring with the true probabilities, where a generator knows them.
        title: above the table.
    """
    if standings:
        console.print(table(standings, intervals, best=best, title=title, console=console))
    return as_json(standings, best=best)


def as_json(standings: Sequence[Standing], *, best: Mapping[str, float] | None = None) -> dict[str, Any]:
    """Return ``{"models": {NAME: {...}}, "best_auc"?}``, models in the order of the run, null for NaN."""
    models = {
        standing.name: {
            **{name: _number(standing.figures[name]) for name in (*JSON_FIGURES, *_extra([standing]))},
            "impressions": int(standing.figures["impressions"]),
            "impressions_per_s": _number(standing.impressions_per_s),
            "digest": standing.digest,
        }
        for standing in standings
    }
    return {"models": models} | ({} if best is None else {"best_auc": _number(best["auc"])})


def table(
    standings: Sequence[Standing],
    intervals: Mapping[str, Mapping[str, Interval]],
    *,
    console: Console,
    best: Mapping[str, float] | None = None,
    title: str | None = None,
) -> Table:
    """Return the table as wide as the console allows, the best AUC first; arguments as in :func:`leaderboard`."""
    columns = _columns(standings[0].name, intervals, _extra(standings))
    # Models without an AUC go last, and equal ones stay in the order of the run.
    ranked = sorted(standings, key=lambda s: -s.figures["auc"] if math.isfinite(s.figures["auc"]) else math.inf)
    unbounded = console.options.update(width=10_000)  # a console tells no width above its own otherwise
    while True:
        drawn = _draw(columns, ranked, best)
        least = max(columns, key=lambda column: column.importance)
        if least.importance == 0 or console.measure(drawn, options=unbounded).maximum <= console.width:
            drawn.title, drawn.caption = title, _caption(standings, columns)
            return drawn
        columns = [column for column in columns if column is not least]


def _extra(standings: Sequence[Standing]) -> tuple[str, ...]:
    return (DRAWN_HITS,) if any(DRAWN_HITS in standing.figures for standing in standings) else ()


def _columns(first: str, intervals: Mapping[str, Mapping[str, Interval]], extra: Sequence[str] = ()) -> list[_Column]:
    columns = [
        _Column("model", 0, lambda s: Text(s.name, overflow="ellipsis", no_wrap=True)),
        _Column("AUC", 0, lambda s: _figure(s, "auc")),
    ]
    if intervals:
        columns.append(_Column(f"vs {first}", _DIFFERENCE, lambda s: _difference(s, first, intervals)))
    if extra:
        columns.append(_Column("HR@3 drawn", 2, lambda s: _figure(s, DRAWN_HITS)))
    return [
        *columns,
        _Column("gAUC", 3, lambda s: _figure(s, "gauc")),
        _Column("by user", 7, lambda s: _figure(s, "gauc_user")),
        _Column("log loss", 2, lambda s: _figure(s, "log_loss")),
        _Column("NE", 6, lambda s: _figure(s, "ne")),
        _Column("MRR", 4, lambda s: _figure(s, "mrr")),
        _Column("impr./s", 5, lambda s: f"{s.impressions_per_s:,.0f}" if math.isfinite(s.impressions_per_s) else ""),
    ]


def _draw(columns: Sequence[_Column], ranked: Sequence[Standing], best: Mapping[str, float] | None) -> Table:
    drawn = Table(box=box.SIMPLE_HEAD, title_justify="left", caption_justify="left", pad_edge=False, collapse_padding=True)
    for column in columns:
        drawn.add_column(column.title, justify="left" if column.title == "model" else "right", no_wrap=True)
    for standing in ranked:
        drawn.add_row(*(column.cell(standing) for column in columns))
    if best is not None:
        drawn.add_section()
        reached = Standing(BEST, best, math.nan, "")
        drawn.add_row(*(column.cell(reached) for column in columns), style="dim")
    return drawn


def _caption(standings: Sequence[Standing], columns: Sequence[_Column]) -> str:
    impressions = f"{int(standings[0].figures['impressions']):,} impressions"
    against = [column.title for column in columns if column.importance == _DIFFERENCE]
    return "; ".join([impressions, *(f"{title}: AUC with its 95% interval, bootstrap by user" for title in against)])


def _figure(standing: Standing, name: str) -> str:
    value = standing.figures.get(name, math.nan)
    return f"{value:.4f}" if math.isfinite(value) else "-"


def _difference(standing: Standing, first: str, intervals: Mapping[str, Mapping[str, Interval]]) -> str | Text:
    if standing.name not in intervals:
        return ""
    difference, low, high = intervals[standing.name]["auc"]
    if not all(map(math.isfinite, (difference, low, high))):
        return "-"
    style = "green" if low > 0 else "red" if high < 0 else ""
    return Text(f"{_signed(difference)} [{_signed(low)}, {_signed(high)}]", style=style)


def _signed(value: float) -> str:
    return f"{value:+.4f}".replace("0.", ".", 1)


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
