"""Columns of a batch -> typed columns of good rows; each bad row is one error."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .mapping import FeatureColumn
from .ordering import sorted_rows
from .source import SourceError, Tally, bad_row
from .tables import Batch
from .values import identifier, number, optional, time_reader

__all__ = ["Clock", "Field", "Rows", "convert", "feature_dict", "feature_dicts", "feature_fields", "sort_rows"]

_SORTED_BATCH = 8_192


class Field(NamedTuple):
    """Where one field comes from and how a value is read; ``read`` raises ValueError with what is wrong."""

    column: str
    read: Callable[[Any], Any]
    is_time: bool = False


class Rows(NamedTuple):
    """Good rows of a batch: field -> values, ``[n]`` each."""

    paths: Sequence[Path]
    """One for all rows, or one per row."""
    numbers: Sequence[int]
    fields: dict[str, list[Any]]
    done: int

    def bad(self, row: int, field: str, value: Any, why: str) -> SourceError:
        """Return the error for one field of one row."""
        return bad_row(self.paths[row if len(self.paths) > 1 else 0], self.numbers[row], field, value, why)


class Clock:
    """The newest time so far: a log's rows come in its order, but for the lateness that the joiner is told."""

    def __init__(self, lateness_ms: int) -> None:
        self.lateness_ms = lateness_ms
        self.newest = 0

    def why_late(self, ts: int) -> str | None:
        """Move on to ``ts``; return what is wrong with it, or None."""
        if ts < self.newest - self.lateness_ms:
            return (
                f"is {(self.newest - ts) / 1_000:.3f} s older than a row before it, lateness_ms is {self.lateness_ms}: "
                "sort the file by time, set sort = true, or raise lateness_ms"
            )
        self.newest = max(self.newest, ts)
        return None


def feature_fields(features: Mapping[str, FeatureColumn], prefix: str) -> dict[str, Field]:
    """Return ``PREFIX.NAME`` -> field, for features that may be missing."""
    readers = {"float": optional(number), "id": optional(identifier)}
    return {f"{prefix}.{name}": Field(feature.column, readers[feature.kind]) for name, feature in features.items()}


def feature_dict(rows: Rows, row: int, names: Sequence[str], prefix: str) -> dict[str, Any]:
    """Return the features of one row, the missing ones left out."""
    values = ((name, rows.fields[f"{prefix}.{name}"][row]) for name in names)
    return {name: value for name, value in values if value is not None}


def feature_dicts(rows: Rows, names: Sequence[str], prefix: str) -> list[dict[str, Any]]:
    """Return the features of each row, the missing ones left out."""
    if not names:
        return [{}] * len(rows.numbers)
    columns = [rows.fields[f"{prefix}.{name}"] for name in names]
    if not any(None in column for column in columns):
        return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]
    return [
        {name: value for name, value in zip(names, values, strict=True) if value is not None}
        for values in zip(*columns, strict=True)
    ]


def convert(batch: Batch, fields: Mapping[str, Field], tally: Tally, base: int) -> Rows:
    """Read every field of every row; rows with a bad one go to ``tally``.

    Args:
        batch: columns of a file; one that it lacks gives None.
        fields: field -> column and reader.
        tally: takes the bad rows.
        base: units of the source before this file.
    """
    n_rows, bad = len(batch.numbers), set[int]()
    found: dict[str, list[Any]] = {}
    for name, field in fields.items():
        values = batch.columns.get(field.column)
        if values is None:
            found[name] = [None] * n_rows
            continue
        read = time_reader("ms") if field.is_time and field.column in batch.times else field.read
        try:
            found[name] = _read_all(read, values)
        except ValueError:
            label = name if name == field.column else f"{name} (column {field.column!r})"
            found[name] = _one_by_one(batch, label, read, values, bad, tally)
    numbers = batch.numbers
    if bad:
        good = [row for row in range(n_rows) if row not in bad]
        numbers = [numbers[row] for row in good]
        found = {name: [values[row] for row in good] for name, values in found.items()}
    return Rows((batch.path,), numbers, found, base + batch.done)


def _read_all(read: Callable[[Any], Any], values: list[Any]) -> list[Any]:
    """Read each value; one that comes again is read once, as most columns of a log repeat theirs."""
    kinds = set(map(type, values)) - {type(None)}
    if len(kinds) <= 1 and kinds <= {str, int, float}:  # 1, 1.0 and True are equal, but not the same id
        distinct = set(values)
        if len(distinct) <= len(values) // 2:
            table = {value: read(value) for value in distinct}
            return [table[value] for value in values]
    return [read(value) for value in values]


def _one_by_one(
    batch: Batch, label: str, read: Callable[[Any], Any], values: list[Any], bad: set[int], tally: Tally
) -> list[Any]:
    found: list[Any] = []
    for row, value in enumerate(values):
        try:
            found.append(read(value))
        except ValueError as error:
            found.append(None)
            if row not in bad:
                bad.add(row)
                tally.bad(bad_row(batch.path, batch.numbers[row], label, value, str(error)))
    return found


def sort_rows(batches: Iterable[Rows], key: Sequence[str]) -> Iterator[Rows]:
    """Sort rows by the given fields (missing ones as ``""``), in runs on disk where they are many."""
    paths: list[Path] = []
    names: list[str] = []
    done = 0

    def flat() -> Iterator[tuple[Any, ...]]:
        nonlocal done
        for rows in batches:
            if rows.paths[0] not in paths:
                paths.append(rows.paths[0])
            names[:], done = list(rows.fields), rows.done
            source = paths.index(rows.paths[0])
            keys = zip(*(rows.fields[field] for field in key), strict=True)
            for at, number_, values in zip(keys, rows.numbers, zip(*rows.fields.values(), strict=True), strict=True):
                yield ["" if part is None else part for part in at], source, number_, *values

    pending: list[tuple[Any, ...]] = []
    for row in sorted_rows(flat()):
        pending.append(row)
        if len(pending) >= _SORTED_BATCH:
            yield _rows_of(pending, paths, names, done)
            pending = []
    if pending:
        yield _rows_of(pending, paths, names, done)


def _rows_of(tuples: list[tuple[Any, ...]], paths: list[Path], names: list[str], done: int) -> Rows:
    _, sources, numbers, *columns = map(list, zip(*tuples, strict=True))
    return Rows([paths[source] for source in sources], numbers, dict(zip(names, columns, strict=True)), done)
