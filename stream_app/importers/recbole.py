"""``recbole``: RecBole's atomic files of interactions (``NAME.inter``): a line of typed names, then one per line, by tabs.

::

    user_id:token	item_id:token	rating:float	timestamp:float
    196	242	3	881250949

Without a label every row is positive. With ``label = "FIELD"`` rows are positive from ``positive`` on; the others are actions
of the kind ``other``. With ``candidates = "rows"`` each row is a request with its item alone: for click logs that hold their
negatives. Other fields are not read, those of ``_seq`` types among them.

Source: W. X. Zhao et al., "RecBole", CIKM 2021; its documentation, "Atomic Files".
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final, Literal

import pyarrow as pa
import pyarrow.compute as pc

from .interactions import CLICK, InteractionOptions, InteractionsImport, interactions, joined, milliseconds
from .lines import Block, Column, Layout, first_line, read_lines
from .source import ImporterKind, SourceError, Tally

__all__ = ["KIND", "RecBoleOptions", "open_recbole"]

_TYPES: Final = ("token", "float", "token_seq", "float_seq")
_SAYS: Final = "an .inter file has tabs between its fields"


class RecBoleOptions(InteractionOptions, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Options of ``recbole``."""

    user: str = "user_id"
    """Field of the user."""
    item: str = "item_id"
    """Field of the item."""
    time: str = "timestamp"
    """Field of the time."""
    ts_unit: Literal["s", "ms"] = "s"
    """Unit of the time."""
    label: str | None = None
    """Field that labels a row, for example rating or label; without one all rows are positive."""
    positive: float = 1.0
    """Labels from here on are positive."""
    category: str | None = None
    """Field of the item's category."""


def open_recbole(files: list[Path], options: RecBoleOptions, tally: Tally) -> InteractionsImport:
    """Open one import.

    Raises:
        SourceError: the first line is none of typed names, or a field is not there.
    """
    layouts = {path: _layout(path, options) for path in files}

    def read(path: Path) -> Iterator[Block]:
        for rows, done in read_lines(path, layouts[path], tally, skip=1):
            value = rows.column(options.label) if options.label else None
            if value is None:
                kind = pa.repeat(pa.scalar(CLICK), rows.num_rows)
            else:
                kind = pc.if_else(pc.greater_equal(value, options.positive), CLICK, "other")
            ts = milliseconds(rows.column(options.time), options.ts_unit)
            category = rows.column(options.category) if options.category else None
            user, item = rows.column(options.user), rows.column(options.item)
            yield Block(interactions(ts, user, item, kind, value=value, category=category), done)

    return InteractionsImport(files, options, tally, read, joined(categories=options.category is not None))


def _layout(path: Path, options: RecBoleOptions) -> Layout:
    line = first_line(path)
    fields = [(field.rpartition(":")[0], field.rpartition(":")[2]) for field in line.split("\t")]
    for name, kind in fields:
        if not name or kind not in _TYPES:
            raise SourceError(
                f"{path.name}:1: {name or kind!r} is no typed name: the first line of an .inter file is like "
                f"user_id:token<tab>item_id:token<tab>timestamp:float, with the types {', '.join(_TYPES)}; found {line[:80]!r}"
            )
    unit = 1_000 if options.ts_unit == "ms" else 1
    roles = {
        options.user: Column(options.user, expected="a user"),
        options.item: Column(options.item, expected="an item"),
        options.time: Column(
            options.time,
            "float",
            f"a time in {options.ts_unit} since 1970, between 1990 and 2100",
            631_152_000 * unit,
            4_102_444_800 * unit,
        ),
    }
    if options.label:
        roles[options.label] = Column(options.label, "float", "a number")
    if options.category:
        roles[options.category] = Column(options.category, expected="a category")
    if lacking := [name for name in roles if name not in dict(fields)]:
        raise SourceError(
            f"{path.name}:1: there is no field {lacking[0]!r}, found {', '.join(name for name, _ in fields)}; say which it is "
            "with --user, --item, --time, --label or --category"
        )
    return Layout("\t", tuple(roles.get(name, Column(name, used=False)) for name, _ in fields), _SAYS)


KIND = ImporterKind(
    name="recbole",
    summary="RecBole's atomic files of interactions (NAME.inter); candidates are drawn, or each row is its own request",
    options=RecBoleOptions,
    open=open_recbole,
)
