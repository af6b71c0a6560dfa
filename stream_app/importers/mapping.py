"""The field mapping of the ``rows`` importer: which column of a log is what.

A click log with one row per shown item needs about this much (``mapping.toml``)::

    layout = "flat"
    user = "visitor"
    request = "page_view"
    item = "sku"
    ts = "shown_at"
    ts_unit = "s"
    label = "clicked"
    category = "department"
    features = { price = "float", brand = "id" }

A column that is not named is looked for under the name of the event's own field (``user_id``, ``item_id``, ``ts``, ...), and if
the file has none, an optional field is left out. ``""`` leaves an optional one out in any case.
"""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path
from typing import Final, Literal

import msgspec

from stream_app.joiner.config import FeatureKind

from .source import ImportOptions, SourceError
from .tables import JSON_SUFFIXES
from .values import TimeUnit

__all__ = ["ActionColumns", "FeatureColumn", "Layout", "RowsOptions", "read_mapping", "resolve", "resolve_features"]

Layout = Literal["events", "flat", "page"]

_OWN_NAMES: Final = {"user": "user_id", "item": "item_id", "request": "request_id"}
_NEEDED: Final = frozenset({"user", "item", "ts"})


class FeatureColumn(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A feature whose column has another name."""

    column: str
    kind: FeatureKind


Features = dict[str, FeatureKind | FeatureColumn]


class ActionColumns(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Columns of files that hold one action per row."""

    files: str = "*"
    """Pattern of the names of such files among those given, for example ``actions*.csv``."""
    user: str | None = None
    item: str | None = None
    ts: str | None = None
    ts_unit: TimeUnit = "ms"
    kind: str | None = None
    """Column of the kind: click, buy ..."""
    default_kind: str = "click"
    """Kind where there is no such column or it is empty."""
    request: str | None = None
    query: str | None = None
    category: str | None = None
    domain: str | None = None
    value: str | None = None


class RowsOptions(ImportOptions, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Options of ``rows``: the mapping."""

    layout: Layout = "events"
    """events: raw events in Freshet's own JSON format, no mapping needed. flat: one row per shown item, the rows of one page
    next to each other. page: one row per page, its items as lists (or as text with ``separator``)."""
    user: str | None = None
    item: str | None = None
    request: str | None = None
    """Missing: the page is told by user and time."""
    ts: str | None = None
    ts_unit: TimeUnit = "ms"
    query: str | None = None
    query_category: str | None = None
    category: str | None = None
    domain: str | None = None
    position: str | None = None
    """Missing: the order of the rows (or of the list) is the position."""
    label: str | None = None
    """Column that is positive where the item was clicked."""
    positive: tuple[str, ...] = ()
    """Values of ``label`` that are positive; empty: numbers above 0, true and yes."""
    clicked: str | None = None
    """Layout page: column with the id, or the list of ids, that was clicked, where there is no ``label`` list."""
    click_ts: str | None = None
    """Column with the time of the click, in ``ts_unit``; missing: the time of the page."""
    label_kind: str = "click"
    """Kind of the action that a positive label becomes."""
    features: Features = msgspec.field(default_factory=dict)
    """Features of the shown item: name -> ``float`` or ``id`` (or ``{column = "c", kind = "id"}``)."""
    request_features: Features = msgspec.field(default_factory=dict)
    actions: ActionColumns | None = None
    """Files that hold actions of their own (purchases, plays), in a layout of one action per row."""
    sort: bool = False
    """Sort by time first (flat and page; runs on disk, any size)."""
    delimiter: str = ","
    header: tuple[str, ...] = ()
    """Column names of a CSV file that does not begin with them."""
    separator: str = "|"
    """Between the entries of a list that is text (layout page)."""
    label_window_ms: int | None = None
    """How long after the page an action still labels it; None: 0 where all clicks have their page's time, else half an hour."""
    lateness_ms: int = 5_000
    """Rows may be this much older than the newest one so far."""

    def is_actions(self, path: Path) -> bool:
        """Whether a file holds actions of its own."""
        return self.actions is not None and fnmatch(path.name, self.actions.files)

    def feature_columns(self, which: Literal["features", "request_features"]) -> dict[str, FeatureColumn]:
        """Return feature name -> column and kind."""
        given: Features = getattr(self, which)
        return {name: f if isinstance(f, FeatureColumn) else FeatureColumn(name, f) for name, f in given.items()}


def read_mapping(path: Path) -> RowsOptions:
    """Read a mapping from a TOML file.

    Raises:
        SourceError: it is not there, not TOML, or has an unknown key or a wrong value.
    """
    try:
        return msgspec.toml.decode(path.read_bytes(), type=RowsOptions)
    except FileNotFoundError:
        raise SourceError(f"there is no mapping file {str(path)!r}") from None
    except (msgspec.MsgspecError, UnicodeDecodeError, IsADirectoryError) as error:
        known = ", ".join(RowsOptions.__struct_fields__)
        raise SourceError(f"{path.name}: {error}; a mapping knows {known}") from error


def resolve(mapping: RowsOptions | ActionColumns, fields: tuple[str, ...], path: Path, found: set[str]) -> dict[str, str]:
    """Return field -> column of the file, for the fields that the file has.

    Args:
        mapping: what the user named.
        fields: fields of the mapping that name a column.
        path: the file.
        found: its columns.

    Raises:
        SourceError: a column that was named, or that is needed, is not in the file.
    """
    is_json = path.suffix.lower() in JSON_SUFFIXES
    columns = {}
    for field in fields:
        named: str | None = getattr(mapping, field)
        column = _OWN_NAMES.get(field, field) if named is None else named
        # A JSON object may come to a field later than at the head of the file, which is all that ``found`` has seen.
        if column in found or (is_json and named is None and field not in _NEEDED):
            columns[field] = column
        elif named or field in _NEEDED:
            raise missing_column(path, field, column, found)
    return columns


def resolve_features(columns: dict[str, FeatureColumn], table: str, path: Path, found: set[str]) -> dict[str, FeatureColumn]:
    """Return the features, all of them in the file.

    Raises:
        SourceError: a feature's column is not in the file.
    """
    for name, feature in columns.items():
        if feature.column not in found:
            raise missing_column(path, f"{table}.{name}", feature.column, found)
    return columns


def missing_column(path: Path, field: str, column: str, found: set[str]) -> SourceError:
    """Return the error for a column that a file lacks."""
    return SourceError(
        f"{path.name}: there is no column {column!r} for {field!r}; the file has {', '.join(sorted(found))}. "
        f'Name the right one in the mapping: {field} = "..."'
    )
