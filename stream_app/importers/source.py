"""What an importer is: files in, chunks of raw events out, and how bad rows are spoken of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import msgspec

from stream_app.events import Action, Impression, Item, User
from stream_app.joiner.config import JoinConfig

__all__ = ["Chunk", "Event", "ImportOptions", "Importer", "ImporterKind", "Progress", "SourceError", "Tally", "bad_row"]

Event = Impression | Action | Item | User
Progress = Callable[[int, int, str], None]
"""Called with (done, total, unit) after each chunk."""

KEPT_ERRORS = 5


class SourceError(ValueError):
    """A file that cannot be imported as asked: the message names the file, the row, the field, the value and the way out."""


class Chunk(NamedTuple):
    """Events in the order in which each of their topics gets them, and how far the source has been read (``unit``s)."""

    events: list[Event]
    done: int


class ImportOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What every importer can be told.

    An option of type ``Path`` is a file of :meth:`Importer.inputs`: two imports are the same where its name and content are.
    """

    partitions: int = 4
    """Partitions of the topics that it creates."""
    on_error: Literal["stop", "skip"] = "stop"
    """skip: leave bad rows out, count them and report the first few."""


class Tally:
    """Bad rows of one import, and what was left out on purpose.

    Args:
        on_error: ``stop`` raises the first bad row, ``skip`` counts them and keeps the first few.
    """

    def __init__(self, on_error: Literal["stop", "skip"]) -> None:
        self.on_error = on_error
        self.errors = 0
        self.first_errors: list[str] = []
        self.left_out: Counter[str] = Counter()
        """Rows that are no event by the importer's own rules, by reason."""

    def bad(self, error: SourceError) -> None:
        """Count a bad row.

        Raises:
            SourceError: the given one, if bad rows stop the import.
        """
        if self.on_error == "stop":
            raise error
        self.errors += 1
        if len(self.first_errors) < KEPT_ERRORS:
            self.first_errors.append(str(error))


def bad_row(path: Path, number: int, field: str, value: Any, why: str) -> SourceError:
    """Return the error for one field of one row (or line), counted from 1.

    >>> print(bad_row(Path("log.csv"), 3, "ts", "soon", "is no time"))
    log.csv:3: ts = 'soon' is no time; mend the row or the mapping, or leave such rows out with --on-error skip
    """
    shown = repr(value) if len(repr(value)) <= 80 else repr(value)[:77] + "..."
    return SourceError(
        f"{path.name}:{number}: {field} = {shown} {why}; "
        "mend the row or the mapping, or leave such rows out with --on-error skip"
    )


class Importer(Protocol):
    """One import of given files. The events and their order depend on the files and the options only."""

    @property
    def total(self) -> int:
        """Units of the source, for the progress display."""

    @property
    def unit(self) -> str:
        """What ``total`` and :attr:`Chunk.done` count: ``rows``, ``bytes`` ..."""

    def inputs(self) -> list[Path]:
        """Return every file whose content decides the events."""

    def chunks(self, limit: int | None) -> Iterator[Chunk]:
        """Yield the events; ``limit`` ends after so many impressions (events, where a source has no impressions).

        Raises:
            SourceError: a file cannot be used, or a bad row stops the import.
        """

    def join_config(self) -> JoinConfig:
        """Return how this log is best joined; asked after the last chunk."""

    def ignored_features(self) -> tuple[str, ...]:
        """Return the request features that only an evaluation may see."""


class ImporterKind(NamedTuple):
    """An importer as it is registered."""

    name: str
    summary: str
    options: type[ImportOptions]
    open: Callable[[list[Path], Any, Tally], Importer]
    """(files, an instance of ``options``, tally) -> the importer."""

    def read_options(self, values: Mapping[str, Any]) -> ImportOptions:
        """Check options given as TOML or JSON values.

        Raises:
            SourceError: an unknown option or a wrong type.
        """
        try:
            return msgspec.convert(dict(values), type=self.options, strict=False, dec_hook=_to_path)
        except msgspec.ValidationError as error:
            known = ", ".join(self.options.__struct_fields__)
            raise SourceError(f"importer {self.name!r}: {error}; its options are {known}") from error


def _to_path(kind: type[Any], value: Any) -> Any:
    if kind is Path and isinstance(value, str):
        return Path(value)
    raise NotImplementedError(f"{value!r} is no {kind.__name__}")
