"""``movielens``: ratings of MovieLens, as ``ratings.dat`` (1M, 10M: ``user::movie::rating::seconds``), ``ratings.csv`` (20M on:
a line of names) or ``u.data`` (100K: tabs). Which one it is shows in the first line.

A rating of ``positive`` or more is a ``click``, with its rating as value; one below is an action of the kind ``rating``, which
labels nothing and is no history unless ``[join]`` says so. With ``candidates = "drawn"`` a click is a request among movies that
others liked lately; with ``"rows"`` each rating is a request with its movie alone, which is the task of most papers on this
data (label: rating >= 4).

Source: F. M. Harper and J. A. Konstan, "The MovieLens Datasets: History and Context", TiiS 2015.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pyarrow.compute as pc

from .interactions import CLICK, InteractionOptions, InteractionsImport, interactions, joined, milliseconds
from .lines import Block, Column, Layout, first_line, read_lines
from .source import ImporterKind, SourceError, Tally

__all__ = ["KIND", "MovieLensOptions", "open_movielens"]

_COLUMNS: Final = (
    Column("user"),
    Column("movie"),
    Column("rating", "float", "a rating from 0 to 5", 0.0, 5.001),
    Column("timestamp", "int", "a time in seconds since 1970, between 1990 and 2100", 631_152_000, 4_102_444_800),
)
_NAMES: Final = "userId,movieId,rating,timestamp"
_DAT: Final = Layout("::", _COLUMNS, "ratings.dat is user::movie::rating::seconds")
_CSV: Final = Layout(",", _COLUMNS, f"ratings.csv is {_NAMES}, with that line of names")
_TABS: Final = Layout("\t", _COLUMNS, "u.data is user, movie, rating and seconds, by tabs")


class MovieLensOptions(InteractionOptions, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Options of ``movielens``."""

    positive: float = 4.0
    """Ratings from here on are positive."""


def open_movielens(files: list[Path], options: MovieLensOptions, tally: Tally) -> InteractionsImport:
    """Open one import.

    Raises:
        SourceError: the first line is none of the three formats'.
    """
    layouts = {path: _layout(path) for path in files}

    def read(path: Path) -> Iterator[Block]:
        layout, skip = layouts[path]
        for rows, done in read_lines(path, layout, tally, skip=skip):
            rating = rows.column("rating")
            kind = pc.if_else(pc.greater_equal(rating, options.positive), CLICK, "rating")
            ts = milliseconds(rows.column("timestamp"), "s")
            yield Block(interactions(ts, rows.column("user"), rows.column("movie"), kind, value=rating), done)

    return InteractionsImport(files, options, tally, read, joined())


def _layout(path: Path) -> tuple[Layout, int]:
    """Return how a file is written, and its lines of names."""
    line = first_line(path)
    if "::" in line:
        return _DAT, 0
    if line.count("\t") == 3:
        return _TABS, 0
    if line.replace(" ", "") == _NAMES:
        return _CSV, 1
    raise SourceError(
        f"{path.name}:1: {line[:40]!r} is no line of MovieLens ratings: there are ratings.dat (user::movie::rating::seconds), "
        f"ratings.csv (whose first line is {_NAMES}) and u.data (by tabs); other files are for the kinds recbole and rows"
    )


KIND = ImporterKind(
    name="movielens",
    summary="ratings of MovieLens (ratings.dat, ratings.csv, u.data); candidates are drawn, or each rating is its own request",
    options=MovieLensOptions,
    open=open_movielens,
)
