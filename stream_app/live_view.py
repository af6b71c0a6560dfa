"""A training run on the terminal: a table that is drawn again and again, or a line now and then where there is none."""

from __future__ import annotations

import datetime as dt
import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TextIO

from stream_app.progress import duration
from stream_app.train_status import Status

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table

DRAW_SECONDS, LINE_SECONDS = 0.5, 10.0

__all__ = ["LiveView", "line_of", "table_of"]


class LiveView:
    """Shows a run on stderr while entered.

    Args:
        quiet: show nothing.
        out: instead of stderr.
    """

    def __init__(self, *, quiet: bool = False, out: TextIO | None = None) -> None:
        self._quiet, self._out = quiet, out or sys.stderr
        self._live: Live | None = None
        self._shown = time.monotonic()

    def __enter__(self) -> Self:
        if not self._quiet and self._out.isatty():
            from rich.console import Console
            from rich.live import Live

            self._live = Live(console=Console(file=self._out), auto_refresh=False, transient=False)
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()

    def update(self, status: Status) -> None:
        """Show a status; may be called at any rate."""
        now = time.monotonic()
        if self._quiet or now - self._shown < (LINE_SECONDS if self._live is None else DRAW_SECONDS):
            return
        self._shown = now
        if self._live is not None:
            self._live.update(table_of(status), refresh=True)
        else:
            print(f"freshet: {line_of(status)}", file=self._out, flush=True)


def line_of(status: Status) -> str:
    """Return a status as one line."""
    parts = [
        f"train: {status.requests:,} requests",
        f"{status.impressions_per_s:,.0f} impressions/s",
        f"lag {status.queue_rows:,} rows and {status.lag.blocks:,} blocks, {duration(status.lag_seconds)} of event time",
        f"queue {100 * status.queue_fill:.0f}%",
        _checkpoint(status),
    ]
    for entrant in status.entrants:
        figures = _figures(status, entrant.name)
        if figures:
            parts.append(f"{entrant.name} AUC {_number(figures.get('auc'))} log loss {_number(figures.get('log_loss'))}")
    return ", ".join(parts)


def table_of(status: Status) -> Table:
    """Return a status as a table for rich."""
    from rich.table import Table

    at = dt.datetime.fromtimestamp(status.ts / 1_000, dt.UTC).strftime("%Y-%m-%d %H:%M:%S") if status.ts else "-"
    title = (
        f"{status.requests:,} requests learned, {status.impressions_per_s:,.0f} impressions/s, event time {at}\n"
        f"lag {status.queue_rows:,} rows read, {status.lag.blocks:,} blocks to read, {duration(status.lag_seconds)} of event "
        f"time; queue {100 * status.queue_fill:.0f}%; {_checkpoint(status)}"
    )
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for name in ("model", "AUC", "log loss", "impressions", "loss parts"):
        table.add_column(name, justify="left" if name in ("model", "loss parts") else "right")
    for entrant in status.entrants:
        figures = _figures(status, entrant.name)
        losses = {name: value for name, value in entrant.stats.items() if name.startswith("loss.")}
        table.add_row(
            entrant.name,
            _number(figures.get("auc")),
            _number(figures.get("log_loss")),
            f"{entrant.learned:,}",
            "  ".join(f"{name.removeprefix('loss.')} {value:.4f}" for name, value in losses.items()),
        )
    return table


def _figures(status: Status, model: str) -> Mapping[str, Any]:
    figures: Mapping[str, Any] = status.windows.get(model, {}).get("figures", {})
    return figures


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _checkpoint(status: Status) -> str:
    age = status.checkpoint.age()
    return "no checkpoint yet" if age is None else f"checkpoint {duration(age)} old"
