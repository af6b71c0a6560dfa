"""Where the progress of imports is kept: a folder beside a log's data, or a topic of the cluster they write to."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec

from stream_app.topics import Log, Message, PositionLostError, Topic

from .report import ImportReport
from .source import SourceError
from .writer import BATCH

__all__ = ["IMPORTS", "Book", "FolderBook", "ImportState", "TopicBook", "imports_in"]

IMPORTS: Final = "imports"
"""Topic of a cluster that says what was imported into it, and what is being imported."""
_COUNT_RECORDS: Final = 10_000
_TRANSACTION_RECORDS: Final = 4_000
"""A transaction takes some 30 ms whatever is in it."""


class ImportState(msgspec.Struct, kw_only=True):
    """What is kept of an import."""

    kind: str
    files: list[str]
    base: dict[str, list[int]]
    """Ends of the raw topics that existed when the import began."""
    report: ImportReport | None = None
    """Set when the import is done."""
    options: dict[str, Any] | None = None
    """Those that are not at their defaults; None was written by a version that did not keep them."""
    limit: int | None = None
    format: int | None = None
    """Of the identity that it is kept under; None was written by a version that did not say."""
    every: dict[str, Any] | None = None
    """All options when it began, those at their defaults with them; None was written by a version that did not keep them."""


class Book(Protocol):
    """The imports into one log, by their identity."""

    place: str
    """What a log of its own is here, for messages."""
    batch: int
    """Records that a partition gets in one append."""

    def all(self, log: Log) -> dict[str, ImportState]:
        """Return identity -> state."""
        ...

    def save(self, log: Log, identity: str, state: ImportState) -> None:
        """Write a state: whole or not at all, and durable."""
        ...

    def claim(self, identity: str, log: Log) -> AbstractContextManager[Log]:
        """Open ``log`` for one run of an import: what earlier runs of it sent is there by then, or never will be."""
        ...

    def appended(self, topic: Topic, partition: int, base: int) -> int:
        """Return how many records there are from an offset on; negative where the partition ends before it."""
        ...


class FolderBook:
    """``LOG/imports/IDENTITY.json``, one file per import."""

    place = "a new log folder"
    batch = BATCH

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def all(self, log: Log) -> dict[str, ImportState]:
        """Return identity -> state.

        Raises:
            SourceError: a file is none of ours.
        """
        return {path.stem: self._load(path) for path in sorted(self._folder.glob("*.json"))}

    def save(self, log: Log, identity: str, state: ImportState) -> None:
        """Write the file: whole or not at all, and durable."""
        path = self._folder / f"{identity}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_suffix(".new")
        with new.open("wb") as file:
            file.write(msgspec.json.format(msgspec.json.encode(state), indent=1))
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)

    def claim(self, identity: str, log: Log) -> AbstractContextManager[Log]:
        """Return the log as it is: one process has the folder, and what it appended before it died is there."""
        return nullcontext(log)

    def appended(self, topic: Topic, partition: int, base: int) -> int:
        """Return the difference of the offsets, which have no gaps."""
        return topic.end(partition) - base

    def _load(self, path: Path) -> ImportState:
        try:
            return msgspec.json.decode(path.read_bytes(), type=ImportState)
        except msgspec.MsgspecError as error:
            raise SourceError(
                f"{path}: not a progress file of an import ({error}); remove the log folder and import again"
            ) from error


class _Entry(msgspec.Struct):
    identity: str
    state: ImportState


class TopicBook:
    """Topic ``imports`` of a cluster: a record per change, of which the newest of each import counts.

    Every append of an import is a transaction, under an id that is the import's own. Whoever claims the id next has the
    cluster end what is open under it, on all replicas, and refuse what is still under way: only then are records counted.

    Args:
        connect: opens the cluster with a transactional id.
    """

    place = "topics of its own (--set kafka.topic_prefix=NAME)"
    batch = _TRANSACTION_RECORDS

    def __init__(self, connect: Callable[[str], Log]) -> None:
        self._connect = connect

    def all(self, log: Log) -> dict[str, ImportState]:
        """Return identity -> state.

        Raises:
            SourceError: a record is none of ours.
        """
        return imports_in(log)

    def save(self, log: Log, identity: str, state: ImportState) -> None:
        """Append a record."""
        value = msgspec.json.encode(_Entry(identity, state))
        log.create(IMPORTS, 1).append(0, [Message(time.time_ns() // 1_000_000, identity.encode(), value)])

    def claim(self, identity: str, log: Log) -> AbstractContextManager[Log]:
        """Open the cluster with the import's id: an earlier run that still goes on is refused from now on."""
        return self._connect(f"import-{identity}")

    def appended(self, topic: Topic, partition: int, base: int) -> int:
        """Count the records: offsets have gaps where transactions end.

        Raises:
            SourceError: some were deleted.
        """
        end = topic.end(partition)
        if end < base:
            return end - base
        count, position = 0, base
        while position < end:
            try:
                records = topic.read(partition, position, _COUNT_RECORDS)
            except PositionLostError as error:
                raise SourceError(
                    f"{error}: it cannot be told how much of this import is there. Import into {self.place}, which keep all "
                    "records (retention.ms = -1)"
                ) from error
            count += len(records)
            position = records[-1].offset + 1 if records else position
        return count


def imports_in(log: Log) -> dict[str, ImportState]:
    """Return identity -> state of what was imported into a cluster.

    Raises:
        SourceError: a record of the topic is none of ours.
    """
    found: dict[str, ImportState] = {}
    if IMPORTS not in log.topics():
        return found
    topic = log.topic(IMPORTS)
    position, end = topic.start(0), topic.end(0)
    while position < end:
        for record in topic.read(0, position):
            try:
                entry = msgspec.json.decode(record.value, type=_Entry)
            except msgspec.MsgspecError as error:
                raise SourceError(
                    f"topic {IMPORTS!r}, record {record.offset}: not the progress of an import ({error}); import into "
                    f"{TopicBook.place}"
                ) from error
            found[entry.identity] = entry.state
            position = record.offset + 1
    return found
