"""Files with one record per line, split by a separator and never quoted, as typed Arrow columns in bounded memory.

A block of whole lines goes through Arrow's parser. Where that finds anything wrong in it (a field too many, a text for a
number, a blank line), the block is read again line by line, so that the error names its line and what was expected there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from .source import SourceError, Tally, bad_row

__all__ = ["Column", "Layout", "first_line", "numbered_lines", "read_lines"]

_BLOCK_BYTES: Final = 4 << 20
_MAX_LINE: Final = 64 << 20
_BOM: Final = b"\xef\xbb\xbf"
_PACKED: Final = {b"PK\x03\x04": "ZIP", b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"7z\xbc\xaf": "7z"}
_SEPARATORS: Final = {",": "commas", "\t": "tabs", "::": "'::'", ";": "semicolons", "|": "'|'", " ": "blanks"}
_TYPES: Final = {"text": pa.string(), "int": pa.int64(), "float": pa.float64()}


class Column(NamedTuple):
    """One field of a line."""

    name: str
    kind: Literal["text", "int", "float"] = "text"
    expected: str = "an id"
    """For messages: what is to stand here."""
    low: float = -math.inf
    high: float = math.inf
    """Numbers are in [low, high)."""
    words: tuple[str, ...] = ()
    """The texts that there are; empty takes any but the empty one."""
    used: bool = True
    """Whether it is read; others may hold anything."""


class Layout(NamedTuple):
    """How the lines of a file are made."""

    separator: str
    columns: tuple[Column, ...]
    says: str
    """The format in a few words, for messages."""


class Block(NamedTuple):
    """Some good lines of a file."""

    rows: pa.RecordBatch
    done: int
    """Bytes of the file that have been read."""


def first_line(path: Path) -> str:
    """Return the first line of a file without its end and byte order mark; ``""`` if the file is empty.

    Raises:
        SourceError: it is packed, or no UTF-8.
    """
    with path.open("rb") as file:
        data = file.readline(1 << 20)
    _check_packed(path, data)
    try:
        return data.decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise SourceError(f"{path.name}:1: no UTF-8 text ({error}); write the file again as UTF-8") from error


def read_lines(path: Path, layout: Layout, tally: Tally, *, skip: int = 0) -> Iterator[Block]:
    """Read a file.

    Args:
        path: the file; a byte order mark, CRLF and blank lines are taken as they come.
        layout: of its lines.
        tally: takes the bad ones.
        skip: lines at the beginning that hold names.

    Raises:
        SourceError: the file is packed, a line has no end, or a bad line stops the import.
    """
    for number, data, done in numbered_lines(path):
        if number <= skip:
            left = skip - number + 1
            data, number = data.split(b"\n", left)[-1] if data.count(b"\n") >= left else b"", skip + 1
        rows = _parsed(data, layout)
        yield Block(_line_by_line(path, number, data, layout, tally) if rows is None else rows, done)


def numbered_lines(path: Path) -> Iterator[tuple[int, bytes, int]]:
    """Yield (number of the first line, whole lines with their ends, bytes read so far)."""
    rest, number, done = b"", 1, 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            if not done:
                _check_packed(path, block)
            done += len(block)
            data = rest + block
            if done == len(block):
                data = data.removeprefix(_BOM)
            cut = data.rfind(b"\n") + 1
            rest = data[cut:]
            if len(rest) > _MAX_LINE:
                raise SourceError(f"{path.name}:{number}: a line of more than {_MAX_LINE >> 20} MB; is this a file of lines?")
            if cut:
                yield number, data[:cut], done
                number += data.count(b"\n", 0, cut)
    if rest:
        yield number, rest + b"\n", done


def _check_packed(path: Path, data: bytes) -> None:
    for start, kind in _PACKED.items():
        if data.startswith(start):
            raise SourceError(f"{path.name}: this is a {kind} archive; unpack it first, and give the file inside")


def _parsed(data: bytes, layout: Layout) -> pa.RecordBatch | None:
    """Return the rows of a block, None where a line may be wrong."""
    separator = layout.separator
    if len(separator) > 1:
        if b"\t" in data:
            return None
        data, separator = data.replace(separator.encode(), b"\t"), "\t"
    wanted = [column for column in layout.columns if column.used]
    try:
        table = pa.csv.read_csv(
            pa.BufferReader(data),
            read_options=pa.csv.ReadOptions(
                use_threads=False, block_size=max(len(data), 1), column_names=[column.name for column in layout.columns]
            ),
            parse_options=pa.csv.ParseOptions(delimiter=separator, quote_char=False),
            convert_options=pa.csv.ConvertOptions(
                column_types={column.name: _TYPES[column.kind] if column.used else pa.string() for column in layout.columns},
                include_columns=[column.name for column in wanted],
                null_values=[""],
            ),
        )
    except pa.ArrowInvalid:
        return None
    if table.num_rows != data.count(b"\n") or not all(_holds(table[column.name], column) for column in wanted):
        return None
    return table.combine_chunks().to_batches()[0] if table.num_rows else _empty(layout)


def _holds(values: Any, column: Column) -> bool:
    if values.null_count:
        return False
    if column.kind == "text":
        if column.words:
            return bool(pc.all(pc.is_in(values, pa.array(column.words))).as_py())
        return bool(pc.all(pc.greater(pc.binary_length(values), 0)).as_py())
    least = pc.min_max(values)
    low, high = least["min"].as_py(), least["max"].as_py()
    return (column.kind == "int" or bool(pc.all(pc.is_finite(values)).as_py())) and low >= column.low and high < column.high


def _empty(layout: Layout) -> pa.RecordBatch:
    return _batch(layout, {column.name: [] for column in layout.columns if column.used})


def _batch(layout: Layout, values: dict[str, list[Any]]) -> pa.RecordBatch:
    kinds = {column.name: _TYPES[column.kind] for column in layout.columns if column.used}
    return pa.RecordBatch.from_arrays([pa.array(values[name], kind) for name, kind in kinds.items()], list(kinds))


def _line_by_line(path: Path, number: int, data: bytes, layout: Layout, tally: Tally) -> pa.RecordBatch:
    found: dict[str, list[Any]] = {column.name: [] for column in layout.columns if column.used}
    for at, line in enumerate(data.split(b"\n"), number):
        if not line.strip():
            continue
        values = _values(path, at, line.rstrip(b"\r"), layout, tally)
        if values is not None:
            for name, value in values.items():
                found[name].append(value)
    return _batch(layout, found)


def _values(path: Path, number: int, line: bytes, layout: Layout, tally: Tally) -> dict[str, Any] | None:
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        tally.bad(bad_row(path, number, "the line", line[:60], f"is no UTF-8 text ({error.reason})"))
        return None
    parts = text.split(layout.separator)
    if len(parts) != len(layout.columns):
        tally.bad(bad_row(path, number, "the line", text[:60], _why_not_split(text, len(parts), layout)))
        return None
    values = {}
    for column, part in zip(layout.columns, parts, strict=True):
        if column.used:
            try:
                values[column.name] = _value(part, column)
            except ValueError:
                tally.bad(bad_row(path, number, column.name, part, f"is not {column.expected} ({layout.says})"))
                return None
    return values


def _value(text: str, column: Column) -> Any:
    """Return a field's value; ValueError where it is none."""
    if column.kind == "text":
        if not text or (column.words and text not in column.words):
            raise ValueError
        return text
    if "_" in text or not text.isascii():  # Python's own spelling of numbers, not that of data
        raise ValueError
    value = int(text) if column.kind == "int" else float(text)
    if not (column.low <= value < column.high and math.isfinite(value) and abs(value) < 1 << 63):
        raise ValueError
    return value


def _why_not_split(text: str, n_found: int, layout: Layout) -> str:
    n_fields, name = len(layout.columns), _SEPARATORS.get(layout.separator, repr(layout.separator))
    why = f"has {n_found} fields by {name}, not {n_fields} ({layout.says})"
    for separator, other in _SEPARATORS.items():
        if separator != layout.separator and len(text.split(separator)) == n_fields:
            return f"{why}; it is split by {other}"
    return why
