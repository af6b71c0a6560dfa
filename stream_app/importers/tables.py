"""JSON lines, CSV and Parquet as batches of Python columns, in bounded memory."""

from __future__ import annotations

import csv
from collections.abc import Callable, Collection, Iterator, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from .source import SourceError, Tally, bad_row

__all__ = ["JSON_SUFFIXES", "Batch", "columns_of", "json_rows", "read_table", "strings", "unknown_suffix"]

JSON_SUFFIXES: Final = (".jsonl", ".ndjson", ".json")
_BATCH_ROWS: Final = 8_192
_BLOCK_BYTES: Final = 1 << 20
_MAX_LINE: Final = 64 << 20
_LINE: Final = msgspec.json.Decoder(dict[str, Any])


class Batch(NamedTuple):
    """Some rows of one file."""

    path: Path
    numbers: Sequence[int]
    """Row of each entry, counted from 1; a CSV file's line of names is row 1."""
    columns: dict[str, list[Any]]
    """Column -> values, None where missing; the columns that the file has among those wanted."""
    done: int
    """Bytes of the file that have been read."""
    times: frozenset[str] = frozenset()
    """Columns that the file itself declares as times: already UTC ms."""


def read_table(
    path: Path, wanted: Sequence[str], tally: Tally, *, delimiter: str = ",", header: Sequence[str] = ()
) -> Iterator[Batch]:
    """Read a file by its suffix (.jsonl, .ndjson, .json, .csv, .tsv, .parquet).

    Args:
        path: the file.
        wanted: columns to read; in JSON, ``a.b`` is the field b of the object a. Missing ones are left out of the batches (CSV,
            Parquet) or None (JSON).
        tally: takes rows that cannot be parsed.
        delimiter: of a CSV file; ``.tsv`` is always by tabs.
        header: names for a CSV file that has no first line of names.

    Raises:
        SourceError: unknown suffix, an unreadable file, or a bad row that stops the import.
    """
    suffix = path.suffix.lower()
    if suffix in JSON_SUFFIXES:
        return _read_json(path, wanted, tally)
    if suffix == ".parquet":
        return _read_parquet(path, wanted)
    if suffix in (".csv", ".tsv"):
        return _read_csv(path, wanted, tally, "\t" if suffix == ".tsv" else delimiter, header)
    raise unknown_suffix(path)


def columns_of(path: Path, *, delimiter: str = ",", header: Sequence[str] = ()) -> set[str]:
    """Return the names of a file's columns (JSON: fields of its first MB, inner ones as ``a.b``); none if it is empty.

    Raises:
        SourceError: unknown suffix or an unreadable file.
    """
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        with _opened(path, lambda: pq.ParquetFile(path)) as file:
            return set(file.schema_arrow.names)
    if suffix in (".csv", ".tsv"):
        with path.open("rb") as lines:
            first = lines.readline(_BLOCK_BYTES)
        names = header or next(
            csv.reader([first.decode("utf-8-sig", "replace")], delimiter="\t" if suffix == ".tsv" else delimiter), []
        )
        return set(names) if first else set()
    if suffix in JSON_SUFFIXES:
        _, lines_, _ = next(json_rows(path), (1, list[bytes](), 0))
        return {name for row in _decode(path, 1, lines_, Tally("skip"))[1] for name in _names(row)}
    raise unknown_suffix(path)


def unknown_suffix(path: Path) -> SourceError:
    """Return the error for a file whose name does not say what it is."""
    return SourceError(
        f"{path.name}: unknown kind of file; known are .jsonl, .ndjson and .json (one object per line), .csv, .tsv, .parquet"
    )


def _names(row: dict[str, Any]) -> Iterator[str]:
    for name, value in row.items():
        yield name
        if isinstance(value, dict):
            yield from (f"{name}.{inner}" for inner in _names(value))


def json_rows(path: Path) -> Iterator[tuple[int, list[bytes], int]]:
    """Yield (number of the first line, lines, bytes read) of a file of lines; the last one may lack its newline."""
    rest, number, done = b"", 1, 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            done += len(block)
            *lines, rest = (rest + block).split(b"\n")
            if len(rest) > _MAX_LINE:
                raise SourceError(
                    f"{path.name}:{number + len(lines)}: a line of more than {_MAX_LINE >> 20} MB; is it one object per line?"
                )
            if lines:
                yield number, lines, done
                number += len(lines)
    if rest:
        yield number, [rest], done


def _read_json(path: Path, wanted: Sequence[str], tally: Tally) -> Iterator[Batch]:
    for first, lines, done in json_rows(path):
        numbers, rows = _decode(path, first, lines, tally)
        yield Batch(path, numbers, _fields(rows, wanted), done)


def _decode(path: Path, first: int, lines: list[bytes], tally: Tally) -> tuple[Sequence[int], list[dict[str, Any]]]:
    try:
        rows = _LINE.decode_lines(b"\n".join(lines))
        if len(rows) == len(lines):  # no blank lines: every row's line is known
            return range(first, first + len(lines)), rows
    except (msgspec.DecodeError, UnicodeDecodeError):
        pass  # line by line below, which says where
    numbers: list[int] = []
    rows = []
    for number, line in enumerate(lines, first):
        if not line.strip():
            continue
        try:
            rows.append(_LINE.decode(line))
            numbers.append(number)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            tally.bad(bad_row(path, number, "line", line[:60].decode(errors="replace"), f"is no JSON object ({error})"))
    return numbers, rows


def _fields(rows: list[dict[str, Any]], wanted: Sequence[str]) -> dict[str, list[Any]]:
    usual = [name for name in wanted if rows and name in rows[0]]
    try:
        # Two names at least, so that the getter gives tuples.
        columns = zip(*map(itemgetter(*usual, *usual), rows), strict=True) if usual else ()
        found = dict(zip(usual, map(list, columns), strict=False))
    except KeyError:
        found = {}  # not in every row
    return {name: found[name] if name in found else _field(rows, name) for name in wanted}


def _field(rows: list[dict[str, Any]], name: str) -> list[Any]:
    if "." not in name:
        return [row.get(name) for row in rows]
    outer, _, inner = name.partition(".")
    return _field([row if name in row else _inner(row, outer) for row in rows], inner)


def _inner(row: dict[str, Any], outer: str) -> dict[str, Any]:
    value = row.get(outer)
    return value if isinstance(value, dict) else {}


def _read_parquet(path: Path, wanted: Sequence[str]) -> Iterator[Batch]:
    with _opened(path, lambda: pq.ParquetFile(path)) as file:
        total, size, first = file.metadata.num_rows, path.stat().st_size, 1
        columns = [name for name in wanted if name in file.schema_arrow.names]
        times = frozenset(name for name in columns if pa.types.is_timestamp(file.schema_arrow.field(name).type))
        for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=columns):
            end = first + batch.num_rows
            values = {name: _values(batch.column(name)) for name in columns}
            yield Batch(path, range(first, end), values, size * (end - 1) // total, times)
            first = end


def _read_csv(path: Path, wanted: Sequence[str], tally: Tally, delimiter: str, header: Sequence[str]) -> Iterator[Batch]:
    if not path.stat().st_size:
        return
    broken: dict[int, str] = {}

    def handle(row: Any) -> str:
        broken[row.number] = f"has {row.actual_columns} columns, not {row.expected_columns}; is {delimiter!r} the delimiter?"
        return "skip"

    with pa.OSFile(str(path)) as file, _opened(path, lambda: _csv_reader(file, wanted, delimiter, header, handle)) as reader:
        columns = [name for name in wanted if name in reader.schema.names]
        first = 1 if header else 2
        while batch := _next_batch(reader, path, first):
            numbers = _numbers(first, batch.num_rows, broken)
            first += batch.num_rows + len(broken)
            for number, why in broken.items():
                tally.bad(bad_row(path, number, "the row", "", why))
            broken.clear()
            yield Batch(path, numbers, {name: _values(batch.column(name)) for name in columns}, file.tell())


def _next_batch(reader: Any, path: Path, first: int) -> Any:
    try:
        return reader.read_next_batch()
    except StopIteration:
        return None
    except pa.ArrowInvalid as error:
        raise SourceError(f"{path.name}: not readable as CSV from row {first} on: {error}") from error


def _numbers(first: int, n_rows: int, broken: Collection[int]) -> Sequence[int]:
    if not broken:
        return range(first, first + n_rows)
    return [number for number in range(first, first + n_rows + len(broken)) if number not in broken]


def _csv_reader(file: Any, wanted: Sequence[str], delimiter: str, header: Sequence[str], handle: Callable[[Any], str]) -> Any:
    # All as text: a wrong value then costs its own row, and its number is known. One thread, so that the rows can be counted.
    return pa.csv.open_csv(
        file,
        read_options=pa.csv.ReadOptions(use_threads=False, block_size=_BLOCK_BYTES, column_names=list(header) or None),
        parse_options=pa.csv.ParseOptions(delimiter=delimiter, invalid_row_handler=handle),
        convert_options=pa.csv.ConvertOptions(
            column_types=dict.fromkeys(wanted, pa.string()), strings_can_be_null=True, null_values=[""]
        ),
    )


def _opened(path: Path, open_file: Callable[[], Any]) -> Any:
    try:
        return open_file()
    except (pa.ArrowInvalid, OSError) as error:
        raise SourceError(f"{path.name}: not readable as {path.suffix.lstrip('.')}: {error}") from error


def _values(array: Any) -> list[Any]:
    """Return an Arrow column as Python values; times as int ms, so that no zone or unit is left to guess."""
    kind = array.type
    if pa.types.is_timestamp(kind):
        array = array.cast(pa.timestamp("ms", kind.tz), safe=False).cast(pa.int64())
        kind = array.type
    if not array.null_count and (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        return array.to_numpy(zero_copy_only=False).tolist()  # type: ignore[no-any-return]
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return strings(array)
    return array.to_pylist()  # type: ignore[no-any-return]


def strings(array: Any) -> list[Any]:
    """Return an Arrow column of text. Logs repeat theirs: one Python object is made per distinct one, which is 2 to 5 times as
    fast as ``to_pylist``."""
    encoded = array.dictionary_encode(null_encoding="encode")
    words = encoded.dictionary.to_pylist()
    return [words[i] for i in encoded.indices.to_numpy(zero_copy_only=False).tolist()]
